//! A driver for a virtio disk.

use crate::{
    abi, clock, paging,
    tap::{Verdict, Wrong, holds},
    virtio::{NEXT, RING_FRAMES, Ring, WRITE, describe, read, register, start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::ext::call;

/// Frames of check memory: the ring's, and one with headers and answers.
const RING: usize = 0;
const HEADERS: usize = RING + RING_FRAMES;
/// The ring of a second queue.
const SECOND_RING: usize = 64;
/// The first frame for data.
pub const DATA: usize = HEADERS + 1;

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

/// A disk that is driven.
pub struct Disk {
    slot: u64,
    /// Its queue.
    pub ring: Ring,
}

impl Disk {
    /// Takes the disk in `slot` over: no features but those it must accept and `features`.
    pub fn start(slot: u64, features: u64) -> Result<Self, Wrong> {
        let ring = Ring::new(slot, 0, RING);
        start(slot, features, &[&ring])?;
        Ok(Self { slot, ring })
    }

    /// Takes its queues 0 and 1 over in the same way. Requests of both lie in the same frame: no two under way at
    /// the same time begin at the same descriptor.
    pub fn start_two(slot: u64, features: u64) -> Result<[Self; 2], Wrong> {
        let rings = [Ring::new(slot, 0, RING), Ring::new(slot, 1, SECOND_RING)];
        start(slot, features, &rings.each_ref())?;
        Ok(rings.map(|ring| Self { slot, ring }))
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
        describe(table, index, (gpa, len.into()), flags, next);
    }

    /// The table of descriptors of queue 0.
    pub fn table() -> u64 {
        paging::frame(RING)
    }

    /// Makes `head` available and rings the doorbell.
    pub fn offer(&mut self, head: u16) -> Verdict {
        self.ring.offer(head);
        self.ring.ring()
    }

    /// Lays a request out from descriptor `first` on and makes it available.
    pub fn begin(&mut self, first: u16, what: (u32, u64), data: &[Buffer]) -> Verdict {
        self.prepare(first, what, data);
        self.ring.ring()
    }

    /// The same without a doorbell.
    pub fn prepare(&mut self, first: u16, (kind, sector): (u32, u64), data: &[Buffer]) {
        let header = paging::frame(HEADERS) + 32 * u64::from(first);
        paging::word(header).store(kind.into(), Relaxed);
        paging::word(header + 8).store(sector, Relaxed);
        paging::word(header + 16).store(0xff, Relaxed);
        let table = self.ring.table();
        Self::describe(table, first, (header, 16, false), NEXT, first + 1);
        let mut index = first + 1;
        for buffer in data {
            Self::describe(table, index, *buffer, NEXT, index + 1);
            index += 1;
        }
        Self::describe(table, index, (header + 16, 1, true), 0, 0);
        self.ring.offer(first);
    }

    /// Waits until one more request was used; the length that the device says it has written.
    pub fn wait(&mut self) -> Result<u64, Wrong> {
        let mut used = None;
        let come = clock::wait(4 * clock::tsc_hz(), || {
            abi::call(call::YIELD, [0; 4]);
            used = self.ring.take();
            used.is_some()
        });
        holds("the device has used a buffer", come)?;
        Ok(used.map_or(0, |(_, len)| len))
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
