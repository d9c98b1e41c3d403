//! The slots of a VM, and the devices in them.
//! May: alloc. Context: run-loop, irq-off. Input: guest-controlled register accesses.
//!
//! A device's front has one lock. Whoever holds it may take the machine's disk's, the bus's and those of
//! vCPUs, never another device's. Answers are taken from the disk before the front is locked. A queue of a disk
//! has a lock as well (`disk`), which is taken before the front's.

use super::{
    card::Card,
    disk::Disk,
    front::{Front, Route, Vector},
    random,
    registers::{Asked, read_empty},
    terminal::{self, Terminal},
    vsock::Vsock,
};
use crate::{
    dev::{Rest, host::Missing},
    stats::add_counter,
    vm::Vm,
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    fmt,
    sync::atomic::{
        AtomicBool,
        Ordering::{AcqRel, Acquire, Release},
    },
};
use pv_abi::{
    bundle::{DeviceKind, Guest},
    ext::devices::{BASE, SLOTS, STRIDE},
    virtio::{console, mmio, vsock},
};
use spin::Mutex;

/// The slots of a VM.
#[derive(Debug)]
pub struct Slots {
    devices: Box<[Option<Device>]>,
    /// The slot of the console, if there is one.
    terminal: Option<u8>,
    any_unfinished: AtomicBool,
}

/// A device in a slot.
#[derive(Debug)]
pub struct Device {
    /// What its driver sees of it.
    pub front: Mutex<Front>,
    /// What it does.
    pub function: Function,
    /// There is more to do than was done at once.
    unfinished: AtomicBool,
}

/// What a device does.
#[derive(Debug)]
pub enum Function {
    /// It is a disk.
    Disk(Disk),
    /// It is a network card.
    Card(Box<Card>),
    /// It gives random bytes.
    Entropy,
    /// It is a console.
    Terminal(Terminal),
    /// It carries packets between sockets.
    Vsock(Box<Vsock>),
}

/// The guest cannot have a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoDevice {
    /// The disk for this slot, and why.
    Disk(u8, Missing),
    /// The network for the card in this slot.
    Network(u8),
    /// Random bytes for the device in this slot.
    Entropy(u8),
    /// There is no such slot.
    Slot(u8),
}

impl fmt::Display for NoDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(slot, why) => write!(f, "the disk of slot {slot}: {why}"),
            Self::Network(slot) => write!(
                f,
                "the machine lacks what the network of slot {slot} goes out by, or L1 cannot use it: its \
                 log says more"
            ),
            Self::Entropy(slot) => write!(
                f,
                "nothing gives random bytes to the device of slot {slot}: the machine needs a virtio entropy \
                 device, or a CPU with RDRAND"
            ),
            Self::Slot(slot) => write!(f, "there is no slot {slot}"),
        }
    }
}

/// What came of a write to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is done.
    Done,
    /// It is done when [`Slots::is_reset`] says so; the vCPU is kicked then.
    Resetting,
}

impl Slots {
    /// The devices of `guest`.
    ///
    /// # Errors
    /// [`NoDevice`].
    pub fn new(guest: &Guest) -> Result<Self, NoDevice> {
        let mut slots: Vec<_> = (0..SLOTS).map(|_| None).collect();
        for wanted in &guest.disks {
            let missing = |why| NoDevice::Disk(wanted.slot, why);
            let slot = slots.get_mut(usize::from(wanted.slot)).ok_or(missing(Missing::Disk))?;
            let (disk, front) = Disk::new(wanted, guest.vcpus).map_err(missing)?;
            *slot = Some(Device::new(front, Function::Disk(disk)));
        }
        for wanted in &guest.cards {
            let missing = NoDevice::Network(wanted.slot);
            let slot = slots.get_mut(usize::from(wanted.slot)).ok_or(missing)?;
            let (card, front) = Card::new(wanted, guest.vcpus).ok_or(missing)?;
            *slot = Some(Device::new(front, Function::Card(Box::new(card))));
        }
        let mut terminal = None;
        for wanted in &guest.devices {
            let number = usize::from(wanted.slot);
            let slot = slots.get_mut(number).ok_or(NoDevice::Slot(wanted.slot))?;
            let (front, function) = match wanted.kind {
                DeviceKind::Entropy => {
                    let front = random::front(number).ok_or(NoDevice::Entropy(wanted.slot))?;
                    (front, Function::Entropy)
                }
                DeviceKind::Console => {
                    terminal = Some(wanted.slot);
                    (Terminal::front(number), Function::Terminal(Terminal::default()))
                }
                DeviceKind::Vsock { cid } => {
                    let (device, front) = Vsock::new(number, cid);
                    (front, Function::Vsock(Box::new(device)))
                }
            };
            *slot = Some(Device::new(front, function));
        }
        Ok(Self { devices: slots.into(), terminal, any_unfinished: AtomicBool::new(false) })
    }

    fn functions(&self) -> impl Iterator<Item = &Function> {
        self.devices.iter().flatten().map(|device| &device.function)
    }

    /// What has come of frames and packets, and how often devices have stopped.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut sums = Vec::new();
        let mut add = |counter| add_counter(&mut sums, counter);
        for function in self.functions() {
            match function {
                Function::Card(card) => card.counters().for_each(&mut add),
                Function::Vsock(vsock) => vsock.counters().for_each(&mut add),
                Function::Disk(disk) => disk.counters().for_each(&mut add),
                Function::Entropy | Function::Terminal(_) => {}
            }
        }
        for device in self.devices.iter().flatten() {
            device.front.lock().stops().for_each(&mut add);
        }
        sums
    }

    /// Frames and packets from others come to `vm`, whose devices these are, from now on.
    pub fn plug_in(&self, vm: &Arc<Vm>) {
        for function in self.functions() {
            match function {
                Function::Card(card) => card.plug_in(vm),
                Function::Vsock(vsock) => vsock.plug_in(vm),
                Function::Disk(_) | Function::Entropy | Function::Terminal(_) => {}
            }
        }
    }

    /// None come any more.
    fn unplug(&self) {
        for function in self.functions() {
            match function {
                Function::Card(card) => card.unplug(),
                Function::Vsock(vsock) => vsock.unplug(),
                Function::Disk(_) | Function::Entropy | Function::Terminal(_) => {}
            }
        }
    }

    /// The device in `slot`.
    #[must_use]
    pub fn device(&self, slot: u64) -> Option<&Device> {
        self.devices.get(usize::try_from(slot).ok()?)?.as_ref()
    }

    /// True if there is such a slot, with a device or without.
    fn has(slot: u64) -> bool {
        slot < SLOTS as u64
    }

    /// The register at `offset` of `slot`.
    #[must_use]
    pub fn read(&self, slot: u64, offset: u64) -> Option<u32> {
        match self.device(slot) {
            Some(device) => device.front.lock().registers.read(offset),
            None if Self::has(slot) => read_empty(offset),
            None => None,
        }
    }

    /// Has the device in `slot` interrupt by `vector`, or nobody; false if there is no device.
    pub fn set_vector(&self, slot: u64, vector: Option<Vector>) -> bool {
        let Some(device) = self.device(slot) else { return false };
        device.front.lock().set_route(vector.map_or(Route::Nobody, Route::Vector));
        true
    }

    /// Has what is used in `queue` of `slot` be told by `vector`, or in the device's way; false if there is no such
    /// queue.
    pub fn set_queue_vector(&self, slot: u64, queue: u64, vector: Option<Vector>) -> bool {
        let device = self.device(slot).zip(usize::try_from(queue).ok());
        device.is_some_and(|(device, queue)| device.front.lock().set_queue_route(queue, vector))
    }

    /// True if the device in `slot`, which was reset, uses no memory any more. If not, vCPU `vcpu` is
    /// kicked when that is so.
    pub fn is_reset(&self, slot: u64, vcpu: usize) -> bool {
        let Some(device) = self.device(slot) else { return true };
        let mut front = device.front.lock();
        let resetting = front.is_resetting();
        if resetting {
            front.wait(vcpu);
        }
        !resetting
    }

    /// The VM has ended: nothing new is begun. True if no device uses its memory any more; if not,
    /// [`guests::look_again`] tells when one has let go.
    pub fn end(&self) -> bool {
        self.unplug();
        self.devices.iter().flatten().fold(true, |all, device| all & device.front.lock().close())
    }
}

impl Device {
    fn new(front: Front, function: Function) -> Self {
        Self { front: Mutex::new(front), function, unfinished: AtomicBool::new(false) }
    }

    /// There is something new in `queue`; the driver has accepted `features`.
    fn notified(&self, vm: &Arc<Vm>, queue: usize, features: u64) {
        match &self.function {
            Function::Card(card) => self.rest(vm, card.notified(vm, &self.front, queue, features)),
            // What has come waits for buffers.
            Function::Terminal(_) if queue == console::RECEIVE => {
                terminal::read(vm, &mut self.front.lock());
            }
            Function::Vsock(vsock) if queue == vsock::RECEIVE => {
                vsock.receive(vm, &self.front, None);
            }
            Function::Disk(disk) => disk.serve(vm, &self.front, queue),
            _ => self.serve(vm),
        }
    }

    /// Does what the driver asks for. If that is more than is done at once, a vCPU of the guest's goes on with
    /// it when it has its turn.
    fn serve(&self, vm: &Arc<Vm>) {
        let rest = match &self.function {
            Function::Disk(disk) => {
                disk.serve_all(vm, &self.front);
                Rest::Nothing
            }
            Function::Card(card) => card.serve_all(vm, &self.front),
            Function::Entropy => random::serve(vm, &mut self.front.lock()),
            Function::Terminal(terminal) => terminal.write(vm, &self.front),
            Function::Vsock(vsock) => vsock.send(vm, &self.front),
        };
        self.rest(vm, rest);
    }

    /// What is left is done later, if anything is.
    fn rest(&self, vm: &Vm, rest: Rest) {
        if rest == Rest::More {
            self.unfinished.store(true, Release);
            vm.devices.any_unfinished.store(true, Release);
            // Any may be off, the first too.
            (0..vm.vcpus).for_each(|index| vm.kick(index));
        }
    }

    /// It was reset: what it keeps beside its front is forgotten.
    fn forget(&self) {
        match &self.function {
            Function::Terminal(terminal) => terminal.forget(),
            Function::Vsock(vsock) => vsock.forget(),
            Function::Disk(_) | Function::Card(_) | Function::Entropy => {}
        }
    }
}

/// Gives the user's input to the virtio console; false if the guest has none that is driven.
pub fn give_input(vm: &Vm) -> bool {
    let Some(slot) = vm.devices.terminal else { return false };
    let device = vm.devices.device(slot.into());
    device.is_some_and(|device| terminal::read(vm, &mut device.front.lock()))
}

/// Goes on with what was not finished at once.
pub fn go_on(vm: &Arc<Vm>) {
    if !vm.devices.any_unfinished.load(Acquire) || !vm.devices.any_unfinished.swap(false, AcqRel) {
        return;
    }
    for device in vm.devices.devices.iter().flatten() {
        if device.unfinished.swap(false, AcqRel) {
            device.serve(vm);
        }
    }
}

/// Where guest-physical `gpa` lies among the slots of a native guest.
#[must_use]
pub fn locate(gpa: u64) -> Option<(u64, u64)> {
    let at = gpa.checked_sub(BASE).filter(|&at| at < SLOTS as u64 * STRIDE)?;
    Some((at / STRIDE, at % STRIDE))
}

/// Writes the register at `offset` of `slot`; `None` if there is no such register.
pub fn write(vm: &Arc<Vm>, slot: u64, offset: u64, value: u32) -> Option<Written> {
    let device = vm.devices.device(slot)?;
    let mut front = device.front.lock();
    match front.registers.write(offset, value)? {
        Asked::Nothing => {}
        Asked::Acknowledge => front.show_line(vm),
        Asked::Started => {
            if let Function::Card(card) = &device.function {
                card.started(vm, &mut front);
            }
        }
        Asked::Notify(queue) => {
            let features = front.registers.accepted();
            drop(front);
            device.notified(vm, queue, features);
        }
        Asked::Reset => {
            front.reset(vm);
            let resetting = front.is_resetting();
            drop(front);
            device.forget();
            if resetting {
                return Some(Written::Resetting);
            }
        }
    }
    Some(Written::Done)
}

/// There is something new in `queue` of `slot`; false if there is no such queue.
pub fn notify(vm: &Arc<Vm>, slot: u64, queue: u64) -> bool {
    let queue = u32::try_from(queue).ok();
    queue.and_then(|queue| write(vm, slot, mmio::QUEUE_NOTIFY, queue)).is_some()
}

/// The disk in `slot` may go on with what its driver has made available: a request of `queue` has ended, or, with
/// none, the machine's disk has room.
pub fn serve(vm: &Arc<Vm>, slot: usize, queue: Option<usize>) {
    let Some(Device { front, function: Function::Disk(disk), .. }) = vm.devices.device(slot as u64)
    else {
        return;
    };
    match queue {
        Some(queue) => disk.go_on(vm, front, queue),
        None => disk.serve_all(vm, front),
    }
}
