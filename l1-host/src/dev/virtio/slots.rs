//! The devices of a VM: their registers, their requests on the way to the machine's disks and back, and
//! their interrupts.
//! May: guest-memory, alloc. Context: run-loop, irq-off. Input: guest-controlled.
//!
//! A device has one lock. Whoever holds it may take the disk's, the bus's and those of vCPUs, never
//! another device's. Answers are taken from the disk before the device is locked.

use super::{
    DeviceMemory,
    block::{Access, CONFIG_WORDS, Geometry, Kind, Request, Transfer},
    queue::{Broken, Chain},
    registers::{Asked, Registers, read_empty},
};
use crate::{
    dev::host::{self, Disk, Outcome, Refused, Run, Ticket, Work},
    hw::physmap,
    log,
    vm::Vm,
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    hint::spin_loop,
    sync::atomic::Ordering::{AcqRel, Acquire},
};
use pv_abi::{
    addr::{Gfn, Gpa},
    bundle,
    ext::devices::{BASE, SLOTS, STRIDE},
    virtio::{
        block::{NAME, answer},
        interrupt, mmio,
    },
};
use spin::Mutex;

/// Requests of a device under way at most: fewer than a page can count ([`crate::vm::owner`]), and as
/// many as a disk takes.
const REQUESTS: u32 = 32;
/// Pieces of host memory that a request may be made of.
const PIECES: usize = host::PIECES;
/// Requests that are answered at once, one after another, at most: a guest whose other vCPU goes on making
/// them must not keep a CPU in L1.
const AT_ONCE: usize = 1024;

/// The slots of a VM.
#[derive(Debug)]
pub struct Slots(Box<[Option<Mutex<Device>>]>);

#[derive(Debug)]
struct Device {
    registers: Registers<CONFIG_WORDS>,
    geometry: Geometry,
    disk: &'static Disk,
    route: Route,
    /// Requests under way.
    requests: u32,
    /// Who waits for them to come back; until then nothing new is begun.
    resets: u32,
}

/// Where interrupts go.
#[derive(Clone, Copy, Debug)]
enum Route {
    /// To the slot's line of the I/O APIC, if there is one.
    Line,
    /// To a vCPU.
    Vector { vector: u8, vcpu: usize },
    /// Nowhere.
    Nobody,
}

/// The machine lacks a disk that the guest is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDisk {
    /// The slot it was meant for.
    pub slot: u8,
}

impl Slots {
    /// The devices of a guest with these disks.
    ///
    /// # Errors
    /// [`NoDisk`].
    pub fn new(disks: &[bundle::Disk]) -> Result<Self, NoDisk> {
        let mut slots: Vec<_> = (0..SLOTS).map(|_| None).collect();
        for wanted in disks {
            let missing = NoDisk { slot: wanted.slot };
            let slot = slots.get_mut(usize::from(wanted.slot)).ok_or(missing)?;
            let disk = host::find(&wanted.serial).ok_or(missing)?;
            *slot = Some(Mutex::new(Device::new(disk, wanted)));
        }
        Ok(Self(slots.into()))
    }

    fn device(&self, slot: u64) -> Option<&Mutex<Device>> {
        self.0.get(usize::try_from(slot).ok()?)?.as_ref()
    }

    /// True if there is such a slot, with a device or without.
    fn has(slot: u64) -> bool {
        slot < SLOTS as u64
    }

    /// The register at `offset` of `slot`.
    #[must_use]
    pub fn read(&self, slot: u64, offset: u64) -> Option<u32> {
        match self.device(slot) {
            Some(device) => device.lock().registers.read(offset),
            None if Self::has(slot) => read_empty(offset),
            None => None,
        }
    }

    /// Has the device in `slot` interrupt vCPU `vcpu` by `vector`, 0 for nobody; false if there is no
    /// device.
    pub fn set_vector(&self, slot: u64, vector: u8, vcpu: usize) -> bool {
        let Some(device) = self.device(slot) else { return false };
        device.lock().route = match vector {
            0 => Route::Nobody,
            _ => Route::Vector { vector, vcpu },
        };
        true
    }

    /// Waits until no device uses the VM's memory any more; nothing new is begun.
    pub fn quiesce(&self) {
        for device in self.0.iter().flatten() {
            device.lock().begin_reset();
            drain(device);
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
    let mut locked = device.lock();
    let Some(asked) = locked.registers.write(offset, value) else { return false };
    match asked {
        Asked::Nothing => {}
        Asked::Notify => locked.serve(vm, slot as usize),
        Asked::Acknowledge => locked.show_line(vm, slot as usize),
        Asked::Reset => {
            locked.begin_reset();
            locked.show_line(vm, slot as usize);
            drop(locked);
            drain(device);
        }
    }
    true
}

/// There is something new in `queue` of `slot`; false if there is no such queue.
pub fn notify(vm: &Arc<Vm>, slot: u64, queue: u64) -> bool {
    u32::try_from(queue).is_ok_and(|queue| write(vm, slot, mmio::QUEUE_NOTIFY, queue))
}

/// Waits for the requests of a device that was reset. A disk that does not answer is given up in the end
/// ([`Disk::take_answers`]), and so are they.
fn drain(device: &Mutex<Device>) {
    while device.lock().requests > 0 {
        host::service();
        spin_loop();
    }
    device.lock().resets -= 1;
}

/// The answer to a request has come.
pub fn complete(vm: &Arc<Vm>, ticket: &Ticket, outcome: Outcome) {
    let Some(device) = vm.devices.device(ticket.slot as u64) else { return };
    let mut device = device.lock();
    if ticket.written > 0 {
        // Whether it succeeded or not: it may have written.
        ticket.pages.iter().for_each(|&gfn| vm.wrote(gfn));
    }
    unpin(vm, &ticket.pages);
    device.requests -= 1;
    let (code, written) = match outcome {
        Outcome::Done => (answer::OK, ticket.written),
        Outcome::Failed => (answer::IOERR, 0),
    };
    // Nothing comes of it if the device was reset meanwhile.
    device.answer(vm, ticket.slot, (ticket.head, ticket.answer), code, written);
    device.serve(vm, ticket.slot);
}

impl Device {
    fn new(disk: &'static Disk, wanted: &bundle::Disk) -> Self {
        let mut name = [0; NAME];
        for (to, from) in name.iter_mut().zip(wanted.name.bytes()) {
            *to = from;
        }
        let read_only = wanted.read_only || disk.access() == Access::Read;
        let access = if read_only { Access::Read } else { Access::Write };
        let geometry = Geometry { sectors: disk.sectors(), access, name };
        let registers = Registers::new(geometry.identity());
        Self { registers, geometry, disk, route: Route::Line, requests: 0, resets: 0 }
    }

    /// Forgets what the driver has set. [`drain`] must follow.
    fn begin_reset(&mut self) {
        self.registers.reset();
        self.resets += 1;
    }

    /// Takes what the driver has made available, as long as there is room for it.
    fn serve(&mut self, vm: &Arc<Vm>, slot: usize) {
        for done in 0.. {
            if self.requests >= REQUESTS || self.resets > 0 {
                return;
            }
            if done == AT_ONCE {
                return self.stop(vm, slot, &"the driver sends more than it could wait for");
            }
            let Some(queue) = self.registers.queue() else { return };
            let chain = match queue.pop(&**vm) {
                Ok(Some(chain)) => chain,
                Ok(None) => return,
                Err(broken) => return self.stop(vm, slot, &broken),
            };
            let Ok((request, answer)) = self.geometry.request(&**vm, &chain) else {
                return self.stop(vm, slot, &"a request has no header, or no room for the answer");
            };
            match self.begin(vm, slot, request, &chain, answer) {
                Begun::UnderWay => self.requests += 1,
                Begun::Done(code, written) => {
                    self.answer(vm, slot, (chain.head, answer), code, written);
                }
                Begun::NoRoom => {
                    if let Some(queue) = self.registers.queue() {
                        queue.put_back();
                    }
                    return;
                }
            }
        }
    }

    fn begin(
        &self,
        vm: &Arc<Vm>,
        slot: usize,
        request: Request,
        chain: &Chain,
        answer: u64,
    ) -> Begun {
        let transfer = match request {
            Request::Done(code, written) => return Begun::Done(code, written),
            Request::Transfer(transfer) => transfer,
        };
        if transfer.kind == Kind::Flush && !self.disk.has_cache() {
            return Begun::Done(answer::OK, 0);
        }
        let failed = Begun::Done(answer::IOERR, 0);
        let Some((runs, pages)) = pinned(vm, &transfer) else { return failed };
        let Transfer { kind, sector, bytes, .. } = transfer;
        let written = if kind == Kind::Read { bytes as u32 } else { 0 };
        let vm_again = Arc::downgrade(vm);
        let ticket = Ticket { vm: vm_again, slot, head: chain.head, answer, written, pages };
        match self.disk.send(Work { kind, sector, runs }, ticket) {
            Ok(()) => Begun::UnderWay,
            Err((why, ticket)) => {
                unpin(vm, &ticket.pages);
                // With none under way, nothing would ever bring it back.
                match why {
                    Refused::Full if self.requests > 0 => Begun::NoRoom,
                    _ => failed,
                }
            }
        }
    }

    /// Answers a request, and interrupts.
    fn answer(&mut self, vm: &Vm, slot: usize, (head, at): (u16, u64), code: u8, written: u32) {
        // The queue may be a new one already.
        if self.resets > 0 {
            return;
        }
        let Some(queue) = self.registers.queue() else { return };
        let told = vm.write(at, &[code]);
        let used = queue
            .push_used(vm, head, written + 1)
            .and_then(|()| queue.wants_interrupt(vm))
            .and_then(|wants| told.then_some(wants).ok_or(Broken::Ring));
        match used {
            Ok(true) => self.interrupt(vm, slot, interrupt::USED),
            Ok(false) => {}
            Err(broken) => self.stop(vm, slot, &broken),
        }
    }

    /// The driver has broken the rules: nothing more happens until it resets the device.
    fn stop(&mut self, vm: &Vm, slot: usize, why: &dyn core::fmt::Display) {
        log!("guest '{}': the device in slot {slot} stops: {why}", vm.name);
        self.registers.stop();
        self.interrupt(vm, slot, interrupt::CONFIG);
    }

    fn interrupt(&mut self, vm: &Vm, slot: usize, why: u32) {
        self.registers.interrupt(why);
        match self.route {
            Route::Line => self.show_line(vm, slot),
            Route::Vector { vector, vcpu } => vm.post(vcpu, vector),
            Route::Nobody => {}
        }
    }

    /// Sets the slot's line as InterruptStatus says.
    fn show_line(&self, vm: &Vm, slot: usize) {
        let active = self.registers.is_interrupting() && matches!(self.route, Route::Line);
        let raised = vm.bus.lock().set_device_line(slot, active);
        for vector in raised {
            vm.post(0, vector);
        }
    }
}

enum Begun {
    UnderWay,
    Done(u8, u32),
    NoRoom,
}

/// Where the data of `transfer` lies in host memory, and its pages, which are pinned. `None`, and none
/// is, if one of them is not for devices, or there are too many pieces.
fn pinned(vm: &Vm, transfer: &Transfer) -> Option<(Vec<Run>, Vec<Gfn>)> {
    let pages = transfer.data.iter().map(|buffer| {
        let first = buffer.gpa >> 12;
        let last = (buffer.gpa + u64::from(buffer.len) - 1) >> 12;
        (last - first + 1) as usize
    });
    let mut pins = Vec::new();
    pins.try_reserve_exact(pages.sum()).ok()?;
    let mut runs = Vec::new();
    runs.try_reserve_exact(PIECES).ok()?;
    for buffer in &transfer.data {
        let (mut at, end) = (buffer.gpa, buffer.gpa + u64::from(buffer.len));
        while at < end {
            let gfn = Gfn(at >> 12);
            let stop = end.min((at | 0xfff) + 1);
            let added = hold(vm, gfn, &mut pins) && add_run(vm, at, (stop - at) as u32, &mut runs);
            if !added {
                unpin(vm, &pins);
                return None;
            }
            at = stop;
        }
    }
    Some((runs, pins))
}

/// Pins `gfn`, if it is not what was pinned last.
fn hold(vm: &Vm, gfn: Gfn, pins: &mut Vec<Gfn>) -> bool {
    if pins.last() == Some(&gfn) {
        return true;
    }
    let Some(pin) = vm.owners.pin(gfn) else { return false };
    pin.keep();
    pins.push(gfn);
    true
}

/// Adds `len` bytes at `gpa`, within a page, to `runs`.
fn add_run(vm: &Vm, gpa: u64, len: u32, runs: &mut Vec<Run>) -> bool {
    let Some(frame) = vm.env().ram.host_frame(Gfn(gpa >> 12)) else { return false };
    let start = frame.offset(gpa & 0xfff);
    if let Some(last) = runs.last_mut()
        && last.start.offset(last.len.into()) == start
    {
        last.len += len;
        return true;
    }
    let fits = runs.len() < PIECES;
    if fits {
        runs.push(Run { start, len });
    }
    fits
}

fn unpin(vm: &Vm, pages: &[Gfn]) {
    pages.iter().for_each(|&gfn| vm.owners.release(gfn));
}

impl DeviceMemory for Vm {
    fn read(&self, gpa: u64, out: &mut [u8]) -> bool {
        self.device_read(Gpa(gpa), out)
    }

    fn write(&self, gpa: u64, data: &[u8]) -> bool {
        self.device_write(Gpa(gpa), data)
    }

    fn load16(&self, gpa: u64) -> Option<u16> {
        let gfn = Gfn(gpa >> 12);
        let _pin = self.owners.pin(gfn)?;
        let frame = physmap::frame(self.env().ram.host_frame(gfn)?);
        let word = frame[(gpa & 0xfff) as usize / 8].load(Acquire);
        Some((word >> (gpa % 8 * 8)) as u16)
    }

    fn store16(&self, gpa: u64, value: u16) -> bool {
        let gfn = Gfn(gpa >> 12);
        let Some(_pin) = self.owners.pin(gfn) else { return false };
        let Some(hpa) = self.env().ram.host_frame(gfn) else { return false };
        let word = &physmap::frame(hpa)[(gpa & 0xfff) as usize / 8];
        let shift = gpa % 8 * 8;
        let put = |old: u64| Some(old & !(0xffff << shift) | u64::from(value) << shift);
        let stored = word.fetch_update(AcqRel, Acquire, put).is_ok();
        self.wrote(gfn);
        stored
    }
}
