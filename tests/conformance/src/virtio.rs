//! A driver for a virtio disk, as small as can be, that can also break the rules.
//!
//! Its numbers are its own, from the specification: shared with L1, a wrong one would go unseen.

use crate::{
    abi, clock, paging,
    tap::{Verdict, Wrong, equal, holds},
};
use core::sync::atomic::{
    AtomicU16,
    Ordering::{Relaxed, SeqCst},
    fence,
};
use pv_abi::ext::call;

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

/// Entries of the queue.
pub const SIZE: u16 = 16;
/// Status: the device cannot go on.
pub const NEEDS_RESET: u64 = 64;
/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Frames of check memory: the rings, headers and answers, data.
const DESCRIPTORS: usize = 0;
const DRIVER: usize = 1;
const DEVICE: usize = 2;
const HEADERS: usize = 3;
/// The first frame for data.
pub const DATA: usize = 4;

/// A buffer: where, how long, whether the device writes to it.
pub type Buffer = (u64, u32, bool);

/// What the disk was asked for (virtio 1.2, 5.2.6).
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// The register at `offset` of `slot`, or an error.
pub fn read(slot: u64, offset: u64) -> u64 {
    abi::call(call::DEVICE_READ, [slot, offset, 0, 0])
}

/// Writes it; 0, or an error.
pub fn write(slot: u64, offset: u64, value: u64) -> u64 {
    abi::call(call::DEVICE_WRITE, [slot, offset, value, 0])
}

/// A disk that is driven.
pub struct Disk {
    slot: u64,
    /// Chains made available, and seen used.
    offered: u16,
    used: u16,
}

fn half(physical: u64) -> &'static AtomicU16 {
    paging::half(physical)
}

impl Disk {
    /// Takes the disk in `slot` over: a queue of [`SIZE`] entries, and no features but those it must
    /// accept and `features`.
    pub fn start(slot: u64, features: u64) -> Result<Self, Wrong> {
        let put = |offset, value| equal("DEVICE_WRITE", write(slot, offset, value), 0);
        put(register::STATUS, 0)?;
        put(register::STATUS, 3)?;
        put(register::DRIVER_FEATURES_SEL, 1)?;
        put(register::DRIVER_FEATURES, 1)?;
        put(register::DRIVER_FEATURES_SEL, 0)?;
        put(register::DRIVER_FEATURES, features)?;
        put(register::STATUS, 11)?;
        equal("FEATURES_OK", read(slot, register::STATUS), 11)?;
        put(register::QUEUE_SEL, 0)?;
        put(register::QUEUE_NUM, SIZE.into())?;
        for (offset, frame) in [
            (register::QUEUE_DESC, DESCRIPTORS),
            (register::QUEUE_DRIVER, DRIVER),
            (register::QUEUE_DEVICE, DEVICE),
        ] {
            let at = paging::frame(frame);
            (0..512).for_each(|word| paging::word(at + 8 * word).store(0, Relaxed));
            put(offset, at & 0xffff_ffff)?;
            put(offset + 4, at >> 32)?;
        }
        put(register::QUEUE_READY, 1)?;
        equal("QueueReady", read(slot, register::QUEUE_READY), 1)?;
        put(register::STATUS, 15)?;
        Ok(Self { slot, offered: 0, used: 0 })
    }

    /// Status.
    pub fn status(&self) -> u64 {
        read(self.slot, register::STATUS)
    }

    /// Sectors.
    pub fn sectors(&self) -> u64 {
        read(self.slot, register::CONFIG) | read(self.slot, register::CONFIG + 4) << 32
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn describe(table: u64, index: u16, (gpa, len, written): Buffer, flags: u16, next: u16) {
        let flags = flags | if written { WRITE } else { 0 };
        let at = table + 16 * u64::from(index);
        paging::word(at).store(gpa, Relaxed);
        let rest = u64::from(next) << 48 | u64::from(flags) << 32 | u64::from(len);
        paging::word(at + 8).store(rest, Relaxed);
    }

    /// The table of descriptors.
    pub fn table() -> u64 {
        paging::frame(DESCRIPTORS)
    }

    /// Has the driver hear of what was used, or not.
    pub fn suppress_interrupts(suppressed: bool) {
        half(paging::frame(DRIVER)).store(suppressed.into(), SeqCst);
    }

    /// Makes `head` available and rings the doorbell.
    pub fn offer(&mut self, head: u16) -> Verdict {
        let slot = u64::from(self.offered % SIZE);
        half(paging::frame(DRIVER) + 4 + 2 * slot).store(head, Relaxed);
        self.offered = self.offered.wrapping_add(1);
        half(paging::frame(DRIVER) + 2).store(self.offered, SeqCst);
        equal("DOORBELL", abi::call(call::DOORBELL, [self.slot, 0, 0, 0]), 0)
    }

    /// Counts `count` chains as available that are not.
    pub fn skip_ahead(&mut self, count: u16) {
        self.offered = self.offered.wrapping_add(count);
    }

    /// Lays a request out from descriptor `first` on and makes it available.
    pub fn begin(&mut self, first: u16, (kind, sector): (u32, u64), data: &[Buffer]) -> Verdict {
        let header = paging::frame(HEADERS) + 32 * u64::from(first);
        paging::word(header).store(kind.into(), Relaxed);
        paging::word(header + 8).store(sector, Relaxed);
        paging::word(header + 16).store(0xff, Relaxed);
        let table = Self::table();
        Self::describe(table, first, (header, 16, false), NEXT, first + 1);
        let mut index = first + 1;
        for buffer in data {
            Self::describe(table, index, *buffer, NEXT, index + 1);
            index += 1;
        }
        Self::describe(table, index, (header + 16, 1, true), 0, 0);
        self.offer(first)
    }

    /// Waits until one more request was used; the length that the device says it has written.
    pub fn wait(&mut self) -> Result<u64, Wrong> {
        let index = half(paging::frame(DEVICE) + 2);
        let used = self.used;
        let come = clock::wait(4 * clock::tsc_hz(), || {
            abi::call(call::YIELD, [0; 4]);
            index.load(SeqCst) != used
        });
        holds("the device has used a buffer", come)?;
        fence(SeqCst);
        let entry = paging::frame(DEVICE) + 4 + 8 * u64::from(used % SIZE);
        self.used = used.wrapping_add(1);
        let len = [half(entry + 4), half(entry + 6)].map(|half| u64::from(half.load(Relaxed)));
        Ok(len[0] | len[1] << 16)
    }

    /// The answer to the request laid out from `first` on.
    pub fn answer(first: u16) -> u64 {
        let header = paging::frame(HEADERS) + 32 * u64::from(first);
        paging::word(header + 16).load(Relaxed) & 0xff
    }

    /// Makes a request and waits for it; its answer.
    pub fn ask(&mut self, what: (u32, u64), data: &[Buffer]) -> Result<u64, Wrong> {
        self.begin(0, what, data)?;
        self.wait()?;
        Ok(Self::answer(0))
    }
}
