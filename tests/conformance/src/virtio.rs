//! What all virtio devices have, as seen by a driver as small as can be, that can also break the rules.
//!
//! Its numbers are its own, from the specification: shared with L1, a wrong one would go unseen.

use crate::{
    abi, paging,
    tap::{Verdict, Wrong, equal},
};
use core::sync::atomic::{
    Ordering::{Relaxed, SeqCst},
    fence,
};
use pv_abi::ext::{call, devices::SLOTS};

/// Offsets of registers (virtio 1.2, 4.2.2).
pub mod register {
    pub const MAGIC: u64 = 0;
    pub const VERSION: u64 = 4;
    pub const DEVICE_ID: u64 = 8;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM_MAX: u64 = 0x34;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_DRIVER: u64 = 0x90;
    pub const QUEUE_DEVICE: u64 = 0xa0;
    pub const CONFIG: u64 = 0x100;
}

/// Entries of each queue.
pub const SIZE: u16 = 16;
/// Status: the device cannot go on.
pub const NEEDS_RESET: u64 = 64;
/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Frames of check memory that a ring takes.
pub const RING_FRAMES: usize = 3;

/// One queue: table, driver's and device's part in a frame of check memory each.
pub struct Ring {
    slot: u64,
    number: u64,
    base: usize,
    offered: u16,
    used: u16,
}

/// The register at `offset` of `slot`, or an error.
pub fn read(slot: u64, offset: u64) -> u64 {
    abi::call(call::DEVICE_READ, [slot, offset, 0, 0])
}

/// Writes it; 0, or an error.
pub fn write(slot: u64, offset: u64, value: u64) -> u64 {
    abi::call(call::DEVICE_WRITE, [slot, offset, value, 0])
}

/// The first slot with a device whose DeviceID is `id`.
pub fn find(id: u64) -> Result<u64, Wrong> {
    let slot = (0..SLOTS as u64).find(|&slot| read(slot, register::DEVICE_ID) == id);
    slot.ok_or(Wrong::skipped("no slot holds such a device"))
}

/// Takes the device in `slot` over with `features` and those it must accept, and these queues.
pub fn start(slot: u64, features: u64, rings: &[&Ring]) -> Verdict {
    let put = |offset, value| equal("DEVICE_WRITE", write(slot, offset, value), 0);
    put(register::STATUS, 0)?;
    put(register::STATUS, 3)?;
    put(register::DRIVER_FEATURES_SEL, 1)?;
    put(register::DRIVER_FEATURES, features >> 32 | 1)?;
    put(register::DRIVER_FEATURES_SEL, 0)?;
    put(register::DRIVER_FEATURES, features & 0xffff_ffff)?;
    put(register::STATUS, 11)?;
    equal("FEATURES_OK", read(slot, register::STATUS), 11)?;
    rings.iter().try_for_each(|ring| ring.set_up())?;
    put(register::STATUS, 15)
}

/// Writes descriptor `index` of the table at `table`: a buffer of so many bytes.
pub fn describe(table: u64, index: u16, (gpa, len): (u64, u64), flags: u16, next: u16) {
    let at = table + 16 * u64::from(index);
    paging::word(at).store(gpa, Relaxed);
    paging::word(at + 8).store(u64::from(next) << 48 | u64::from(flags) << 32 | len, Relaxed);
}

impl Ring {
    /// Queue `number` of the device in `slot`, in check memory from frame `base` on.
    pub const fn new(slot: u64, number: u64, base: usize) -> Self {
        Self { slot, number, base, offered: 0, used: 0 }
    }

    /// Where its table of descriptors is.
    pub fn table(&self) -> u64 {
        paging::frame(self.base)
    }

    fn driver(&self) -> u64 {
        paging::frame(self.base + 1)
    }

    fn device(&self) -> u64 {
        paging::frame(self.base + 2)
    }

    fn set_up(&self) -> Verdict {
        let put = |offset, value| equal("DEVICE_WRITE", write(self.slot, offset, value), 0);
        put(register::QUEUE_SEL, self.number)?;
        put(register::QUEUE_NUM, SIZE.into())?;
        for (offset, at) in [
            (register::QUEUE_DESC, self.table()),
            (register::QUEUE_DRIVER, self.driver()),
            (register::QUEUE_DEVICE, self.device()),
        ] {
            (0..512).for_each(|word| paging::word(at + 8 * word).store(0, Relaxed));
            put(offset, at & 0xffff_ffff)?;
            put(offset + 4, at >> 32)?;
        }
        put(register::QUEUE_READY, 1)?;
        equal("QueueReady", read(self.slot, register::QUEUE_READY), 1)
    }

    /// Writes descriptor `index`.
    pub fn describe(&self, index: u16, gpa: u64, len: u64, flags: u16, next: u16) {
        describe(self.table(), index, (gpa, len), flags, next);
    }

    /// Makes `head` available, and tells nobody.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % SIZE);
        paging::half(self.driver() + 4 + 2 * slot).store(head, Relaxed);
        self.offered = self.offered.wrapping_add(1);
        paging::half(self.driver() + 2).store(self.offered, SeqCst);
    }

    /// Counts `count` chains as available that are not.
    pub fn skip_ahead(&mut self, count: u16) {
        self.offered = self.offered.wrapping_add(count);
    }

    /// Rings the doorbell.
    pub fn ring(&self) -> Verdict {
        equal("DOORBELL", abi::call(call::DOORBELL, [self.slot, self.number, 0, 0]), 0)
    }

    /// A chain was used that [`Self::take`] has not told of.
    pub fn has_used(&self) -> bool {
        paging::half(self.device() + 2).load(SeqCst) != self.used
    }

    /// The next chain that was used, and how much of it was written; `None` if there is none yet.
    pub fn take(&mut self) -> Option<(u16, u64)> {
        if !self.has_used() {
            return None;
        }
        fence(SeqCst);
        let entry = self.device() + 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        let half = |at: u64| u64::from(paging::half(entry + at).load(Relaxed));
        Some((half(0) as u16, half(4) | half(6) << 16))
    }

    /// The flags of the used ring.
    pub fn used_flags(&self) -> u64 {
        paging::half(self.device()).load(SeqCst).into()
    }

    /// Has the driver hear of what was used, or not.
    pub fn suppress_interrupts(&self, suppressed: bool) {
        paging::half(self.driver()).store(suppressed.into(), SeqCst);
    }
}
