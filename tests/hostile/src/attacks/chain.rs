//! Chains of descriptors: well-formed, with one flaw, or with any bits.
//! May: nothing. Context: any. Input: random.

use super::devices::address;
use crate::runtime::{
    memory,
    virtio::{self, Descriptor, Device, Ring, SIZE, describe, fuzzed},
};
use hostile::values;
use pv_abi::virtio::queue::{INDIRECT, NEXT};
use suite::random::Random;

/// Descriptors of a chain at most, in these attacks.
const MOST: usize = 8;

/// A chain, before it is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    parts: [Descriptor; MOST],
    len: usize,
    /// The descriptor of the indirect table that holds the chain, if one does.
    table: Option<Descriptor>,
    head: u16,
    /// How far the available ring's index goes beyond it.
    ahead: u16,
}

/// What may be wrong with a chain. The device must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// More is available than the queue holds.
    Overrun,
    /// Its first descriptor is beyond the queue.
    Head,
    /// A descriptor leads beyond the table.
    Index,
    /// A descriptor leads to itself.
    Loop,
    /// An indirect table of no length, or of half an entry.
    Length,
    /// An indirect table in another.
    Nested,
    /// An indirect table that goes on.
    GoesOn,
    /// An indirect table where no device may look.
    Outside,
    /// A buffer of no length.
    Empty,
    /// A buffer that goes on past the last address.
    Wraps,
    /// A buffer to read behind one to write.
    Order,
}

impl Flaw {
    /// All.
    pub const ALL: [Self; 11] = [
        Self::Overrun,
        Self::Head,
        Self::Index,
        Self::Loop,
        Self::Length,
        Self::Nested,
        Self::GoesOn,
        Self::Outside,
        Self::Empty,
        Self::Wraps,
        Self::Order,
    ];
}

impl Chain {
    /// The chain of these buffers, in the queue's own table or in an indirect one.
    pub fn new(random: &mut Random, device: &Device, buffers: &[Descriptor]) -> Self {
        let mut parts = [Descriptor::default(); MOST];
        let last = buffers.len() - 1;
        for (index, buffer) in buffers.iter().enumerate() {
            let goes_on = if index < last { NEXT } else { 0 };
            let (flags, next) = (buffer.flags | goes_on, index as u16 + 1);
            parts[index] = Descriptor { flags, next, ..*buffer };
        }
        let table = Descriptor {
            flags: INDIRECT,
            ..Descriptor::new(device.indirect(), 16 * buffers.len() as u32)
        };
        let table = random.once_in(2).then_some(table);
        Self { parts, len: buffers.len(), table, head: 0, ahead: 0 }
    }

    /// Gives it a flaw.
    pub fn spoil(&mut self, random: &mut Random, device: &Device, flaw: Flaw) {
        fuzzed(2);
        let indirect = Descriptor {
            flags: INDIRECT,
            ..Descriptor::new(device.indirect(), 16 * self.len as u32)
        };
        let at = random.below(self.len as u64) as usize;
        let beyond = |random: &mut Random, end: u16| end + random.below((!0 - end).into()) as u16;
        match flaw {
            Flaw::Overrun => self.ahead = beyond(random, SIZE),
            Flaw::Head => self.head = beyond(random, SIZE),
            Flaw::Index => {
                let end = if self.table.is_some() { self.len as u16 } else { SIZE };
                self.parts[at].flags |= NEXT;
                self.parts[at].next = beyond(random, end);
            }
            Flaw::Loop => {
                self.parts[at].flags |= NEXT;
                self.parts[at].next = at as u16;
            }
            Flaw::Length => {
                let len = random.pick(&[0, 1, 15, 17, 24, 0xffff_ffff]);
                self.table = Some(Descriptor { len, ..indirect });
            }
            Flaw::Nested => {
                self.table = Some(indirect);
                self.parts[at] = Descriptor { next: self.parts[at].next, ..indirect };
            }
            Flaw::GoesOn => {
                self.table = Some(Descriptor { flags: INDIRECT | NEXT, next: 1, ..indirect });
            }
            Flaw::Outside => {
                let gpa = match random.below(3) {
                    // Across the end: the second entry is outside.
                    0 if self.len > 1 => memory::memory() - 16,
                    1 => random.below(memory::frame(0)),
                    _ => memory::memory() + (values::number(random) >> 1),
                };
                self.table = Some(Descriptor { gpa, ..indirect });
                if gpa == memory::memory() - 16 {
                    describe(gpa, 0, self.parts[0]);
                }
            }
            Flaw::Empty => self.parts[at].len = 0,
            Flaw::Wraps => {
                let len = 2 + random.below(0xffff_fff0) as u32;
                self.parts[at].len = len;
                self.parts[at].gpa = u64::MAX - random.below(u64::from(len) - 1);
            }
            Flaw::Order => {
                let last = self.parts[self.len - 1];
                // Behind the last, which is to be written, or is made so.
                let index = self.len.min(MOST - 1);
                self.parts[index - 1] = last.to_write();
                self.parts[index - 1].flags |= NEXT;
                self.parts[index - 1].next = index as u16;
                self.parts[index] = Descriptor::new(last.gpa, 1);
                self.len = index + 1;
                if let Some(table) = &mut self.table {
                    table.len = 16 * self.len as u32;
                }
            }
        }
    }

    /// Changes some of its fields to anything.
    pub fn scramble(&mut self, random: &mut Random) {
        for _ in 0..=random.below(4) {
            fuzzed(1);
            let at = random.below(self.len as u64) as usize;
            let part = match (&mut self.table, random.below(8)) {
                (Some(table), 0) => table,
                _ => &mut self.parts[at],
            };
            match random.below(8) {
                0..3 => part.gpa = address(random),
                3..5 => part.len = values::number(random) as u32,
                5 => part.flags = random.bits() as u16 & random.pick(&[1, 3, 7, 0xffff]),
                6 if random.once_in(4) => part.next = random.bits() as u16,
                6 => part.next = random.pick(&[0, 1, 2, at as u16, SIZE - 1]),
                _ if random.once_in(8) => self.ahead = random.below(SIZE.into()) as u16,
                _ if random.once_in(2) => self.head = random.bits() as u16 % SIZE,
                _ => {}
            }
        }
    }

    /// Stores its descriptors.
    pub fn describe(&self, device: &Device, ring: Ring) {
        let table = match self.table {
            Some(table) => {
                describe(ring.table(), 0, table);
                device.indirect()
            }
            None => ring.table(),
        };
        for (index, part) in self.parts[..self.len].iter().enumerate() {
            describe(table, index as u64, *part);
        }
    }

    /// Lays it out and makes it available, and tells nobody.
    pub fn offer(&self, device: &Device, ring: Ring) {
        self.describe(device, ring);
        ring.offer(self.head);
        if self.ahead > 0 {
            let offered = ring.offered().wrapping_add(self.ahead);
            virtio::set_half(ring.driver() + 2, offered);
        }
    }
}
