//! The slots of a VM, and the devices in them.
//! May: alloc. Context: run-loop, irq-off. Input: guest-controlled register accesses.
//!
//! A device's front has one lock. Whoever holds it may take the machine's disk's, the bus's and those of
//! vCPUs, never another device's. Answers are taken from the disk before the front is locked.

use super::{
    card::Card,
    disk::Disk,
    front::{Front, Route},
    registers::{Asked, read_empty},
};
use crate::{
    dev::{Rest, host},
    vm::Vm,
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    fmt,
    hint::spin_loop,
    sync::atomic::{
        AtomicBool,
        Ordering::{AcqRel, Acquire, Release},
    },
};
use pv_abi::{
    bundle::Guest,
    ext::devices::{BASE, SLOTS, STRIDE},
    virtio::{mmio, net::TRANSMIT},
};
use spin::Mutex;

/// The slots of a VM.
#[derive(Debug)]
pub struct Slots {
    devices: Box<[Option<Device>]>,
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
}

/// The machine lacks what a guest's device is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The disk for this slot.
    Disk(u8),
    /// The network for the card in this slot.
    Network(u8),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(slot) => write!(f, "the disk of slot {slot}"),
            Self::Network(slot) => write!(f, "what the network of slot {slot} goes out by"),
        }
    }
}

impl Slots {
    /// The devices of `guest`.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn new(guest: &Guest) -> Result<Self, Missing> {
        let mut slots: Vec<_> = (0..SLOTS).map(|_| None).collect();
        for wanted in &guest.disks {
            let missing = Missing::Disk(wanted.slot);
            let slot = slots.get_mut(usize::from(wanted.slot)).ok_or(missing)?;
            let (disk, front) = Disk::new(wanted).ok_or(missing)?;
            *slot = Some(Device::new(front, Function::Disk(disk)));
        }
        for wanted in &guest.cards {
            let missing = Missing::Network(wanted.slot);
            let slot = slots.get_mut(usize::from(wanted.slot)).ok_or(missing)?;
            let (card, front) = Card::new(wanted).ok_or(missing)?;
            *slot = Some(Device::new(front, Function::Card(Box::new(card))));
        }
        Ok(Self { devices: slots.into(), any_unfinished: AtomicBool::new(false) })
    }

    /// The network cards.
    fn cards(&self) -> impl Iterator<Item = &Card> {
        self.devices.iter().flatten().filter_map(|device| match &device.function {
            Function::Card(card) => Some(&**card),
            Function::Disk(_) => None,
        })
    }

    /// What has come of the frames of all network cards.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut sums = Vec::new();
        for (name, value) in self.cards().flat_map(|card| card.counts.each()) {
            match sums.iter_mut().find(|(other, _)| *other == name) {
                Some((_, sum)) => *sum += value,
                None => sums.push((name, value)),
            }
        }
        sums
    }

    /// Network cards receive frames for `vm`, whose devices these are, from now on.
    pub fn plug_in(&self, vm: &Arc<Vm>) {
        self.cards().for_each(|card| card.plug_in(vm));
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

    /// Has the device in `slot` interrupt vCPU `vcpu` by `vector`, 0 for nobody; false if there is no
    /// device.
    pub fn set_vector(&self, slot: u64, vector: u8, vcpu: usize) -> bool {
        let Some(device) = self.device(slot) else { return false };
        device.front.lock().set_route(match vector {
            0 => Route::Nobody,
            _ => Route::Vector { vector, vcpu },
        });
        true
    }

    /// Waits until no device uses the memory of `vm`, whose devices these are, any more; nothing new is
    /// begun.
    pub fn quiesce(&self, vm: &Vm) {
        self.cards().for_each(Card::unplug);
        self.devices.iter().flatten().for_each(|device| device.reset(vm));
    }
}

impl Device {
    fn new(front: Front, function: Function) -> Self {
        Self { front: Mutex::new(front), function, unfinished: AtomicBool::new(false) }
    }

    /// Forgets what the driver has set, and waits for what is under way. A disk that does not answer is
    /// given up in the end ([`host::Disk::take_answers`]), and so are its requests.
    fn reset(&self, vm: &Vm) {
        self.front.lock().begin_reset(vm);
        while !self.front.lock().end_reset() {
            host::service();
            spin_loop();
        }
    }

    /// There is something new in `queue`.
    fn notified(&self, vm: &Arc<Vm>, queue: usize) {
        match &self.function {
            Function::Disk(disk) => disk.serve(vm, &mut self.front.lock()),
            // Buffers to receive into are looked for when a frame has come.
            Function::Card(card) if queue == TRANSMIT => self.send(vm, card),
            Function::Card(_) => {}
        }
    }

    /// Sends what there is to send. If that is more than is sent at once, a vCPU of the guest's goes on with
    /// it when it has its turn.
    fn send(&self, vm: &Arc<Vm>, card: &Card) {
        if card.send(vm, &self.front) == Rest::More {
            self.unfinished.store(true, Release);
            vm.devices.any_unfinished.store(true, Release);
            // Any may be off, the first too.
            (0..vm.vcpus).for_each(|index| vm.kick(index));
        }
    }
}

/// Goes on with what was not finished at once.
pub fn go_on(vm: &Arc<Vm>) {
    if !vm.devices.any_unfinished.load(Acquire) || !vm.devices.any_unfinished.swap(false, AcqRel) {
        return;
    }
    for device in vm.devices.devices.iter().flatten() {
        if let Function::Card(card) = &device.function
            && device.unfinished.swap(false, AcqRel)
        {
            device.send(vm, card);
        }
    }
}

/// Where guest-physical `gpa` lies among the slots of a native guest.
#[must_use]
pub fn locate(gpa: u64) -> Option<(u64, u64)> {
    let at = gpa.checked_sub(BASE).filter(|&at| at < SLOTS as u64 * STRIDE)?;
    Some((at / STRIDE, at % STRIDE))
}

/// Writes the register at `offset` of `slot`; false if there is no such register.
pub fn write(vm: &Arc<Vm>, slot: u64, offset: u64, value: u32) -> bool {
    let Some(device) = vm.devices.device(slot) else { return false };
    let mut front = device.front.lock();
    let Some(asked) = front.registers.write(offset, value) else { return false };
    match asked {
        Asked::Nothing => {}
        Asked::Acknowledge => front.show_line(vm),
        Asked::Started => {
            if let Function::Card(card) = &device.function {
                card.started(vm, &mut front);
            }
        }
        Asked::Notify(queue) => {
            drop(front);
            device.notified(vm, queue);
        }
        Asked::Reset => {
            drop(front);
            device.reset(vm);
        }
    }
    true
}

/// There is something new in `queue` of `slot`; false if there is no such queue.
pub fn notify(vm: &Arc<Vm>, slot: u64, queue: u64) -> bool {
    u32::try_from(queue).is_ok_and(|queue| write(vm, slot, mmio::QUEUE_NOTIFY, queue))
}
