//! The slots of a VM, and the devices in them.
//! May: alloc. Context: run-loop, irq-off. Input: guest-controlled register accesses.
//!
//! A device's front has one lock. Whoever holds it may take the machine's disk's, the bus's and those of
//! vCPUs, never another device's. Answers are taken from the disk before the front is locked.

use super::{
    disk::Disk,
    front::{Front, Route},
    registers::{Asked, read_empty},
};
use crate::{dev::host, vm::Vm};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{fmt, hint::spin_loop};
use pv_abi::{
    bundle::Guest,
    ext::devices::{BASE, SLOTS, STRIDE},
    virtio::mmio,
};
use spin::Mutex;

/// The slots of a VM.
#[derive(Debug)]
pub struct Slots(Box<[Option<Device>]>);

/// A device in a slot.
#[derive(Debug)]
pub struct Device {
    /// What its driver sees of it.
    pub front: Mutex<Front>,
    /// What it does.
    pub function: Function,
}

/// What a device does.
#[derive(Debug)]
pub enum Function {
    /// It is a disk.
    Disk(Disk),
}

/// The machine lacks what a guest's device is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The disk for this slot.
    Disk(u8),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(slot) => write!(f, "the disk of slot {slot}"),
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
            *slot = Some(Device { front: Mutex::new(front), function: Function::Disk(disk) });
        }
        Ok(Self(slots.into()))
    }

    /// The device in `slot`.
    #[must_use]
    pub fn device(&self, slot: u64) -> Option<&Device> {
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
        self.0.iter().flatten().for_each(|device| device.reset(vm));
    }
}

impl Device {
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
    fn notified(&self, vm: &Arc<Vm>, _queue: usize) {
        match &self.function {
            Function::Disk(disk) => disk.serve(vm, &mut self.front.lock()),
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
