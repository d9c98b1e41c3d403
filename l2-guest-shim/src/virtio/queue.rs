//! A split virtqueue, the driver's end (virtio 1.2, 2.7), in memory that no front end knows.
//! May: nothing. Context: shim. Input: guest-controlled, for its kernel can write everywhere.
//!
//! What was written into descriptors is never read back: free ones and chains are kept here. What the
//! device, or the kernel, writes into the ring of used ones is checked, and means at worst that a
//! request is taken for done.

use crate::guest_memory::Memory;
use core::sync::atomic::{Ordering::SeqCst, fence};
use pv_abi::virtio::queue::{DESCRIPTOR, NEXT, NO_INTERRUPT, NO_NOTIFY, WRITE};

/// The end of a chain, or of the list of free entries.
const NONE: u16 = u16::MAX;

/// What a device does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It reads it.
    Reads,
    /// It writes it.
    Writes,
}

/// A piece of guest memory for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// First byte.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// What happens to them.
    pub usage: Use,
}

/// When the device is to interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// When it is done with chains.
    Wanted,
    /// Never; it may all the same.
    Unwanted,
}

/// A chain that the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its number.
    pub head: u16,
    /// Bytes that the device says it has written.
    pub written: u32,
}

/// The driver's end of a queue of `ENTRIES`, a power of two.
#[derive(Debug)]
pub struct Queue<const ENTRIES: usize> {
    base: u64,
    /// The first free entry, and how many there are.
    free: u16,
    count: u16,
    /// Of each entry, the next of its chain or of the free ones.
    next: [u16; ENTRIES],
    available: u16,
    used: u16,
}

impl<const ENTRIES: usize> Queue<ENTRIES> {
    /// Offsets: descriptors; flags, index, heads of 2 bytes; flags, index, pairs of 8.
    const DESCRIPTORS: u64 = 0;
    const AVAILABLE: u64 = DESCRIPTOR * ENTRIES as u64;
    const USED: u64 = (Self::AVAILABLE + 4 + 2 * ENTRIES as u64 + 2).next_multiple_of(4);
    /// Bytes of all three.
    pub const SIZE: u64 = (Self::USED + 4 + 8 * ENTRIES as u64 + 2).next_multiple_of(16);

    /// An empty queue in the [`Queue::SIZE`] bytes at `base`, which the device does not use yet. It
    /// interrupts.
    #[must_use]
    pub fn new(memory: &impl Memory, base: u64) -> Self {
        const { assert!(ENTRIES.is_power_of_two() && ENTRIES < NONE as usize) };
        for at in (0..Self::SIZE).step_by(16) {
            memory.write(base + at, &[0; 16]);
        }
        let mut next = [NONE; ENTRIES];
        for (entry, next) in (1..ENTRIES as u16).zip(&mut next) {
            *next = entry;
        }
        Self { base, free: 0, count: ENTRIES as u16, next, available: 0, used: 0 }
    }

    /// Where descriptors, available and used ring are.
    #[must_use]
    pub const fn parts(&self) -> [u64; 3] {
        [self.base + Self::DESCRIPTORS, self.base + Self::AVAILABLE, self.base + Self::USED]
    }

    /// Free entries.
    #[must_use]
    pub const fn free(&self) -> usize {
        self.count as usize
    }

    /// Gives `buffers` to the device as one chain: its number, or `None` if there are more than free
    /// entries, or none. The device need not have been told.
    pub fn add(&mut self, memory: &impl Memory, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || buffers.len() > self.free() {
            return None;
        }
        let head = self.free;
        let mut entry = head;
        for (left, buffer) in (0..buffers.len()).rev().zip(buffers) {
            let next = self.next[usize::from(entry)];
            let flags = if left > 0 { NEXT } else { 0 }
                | if buffer.usage == Use::Writes { WRITE } else { 0 };
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&buffer.gpa.to_le_bytes());
            descriptor[8..12].copy_from_slice(&buffer.len.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&next.to_le_bytes());
            memory
                .write(self.base + Self::DESCRIPTORS + DESCRIPTOR * u64::from(entry), &descriptor);
            if left == 0 {
                self.next[usize::from(entry)] = NONE;
                self.free = next;
            } else {
                entry = next;
            }
        }
        self.count -= buffers.len() as u16;
        let slot = u64::from(self.available) % ENTRIES as u64;
        memory.store16(self.base + Self::AVAILABLE + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
        Some(head)
    }

    /// Shows the device what was added; true if it is to be told.
    #[must_use]
    pub fn show(&self, memory: &impl Memory) -> bool {
        memory.store16(self.base + Self::AVAILABLE + 2, self.available);
        fence(SeqCst);
        memory.load16(self.base + Self::USED).is_none_or(|flags| flags & NO_NOTIFY == 0)
    }

    /// Says when the device is to interrupt. What it was done with before may not be told of.
    pub fn interrupts(&self, memory: &impl Memory, when: Interrupts) {
        let flags = if when == Interrupts::Wanted { 0 } else { NO_INTERRUPT };
        memory.store16(self.base + Self::AVAILABLE, flags);
        fence(SeqCst);
    }

    /// The device is done with a chain that [`Queue::done`] has not told of. It cannot be done with more
    /// than there are entries.
    #[must_use]
    pub fn has_done(&self, memory: &impl Memory) -> bool {
        let used = memory.load16(self.base + Self::USED + 2);
        used.is_some_and(|used| (1..=ENTRIES as u16).contains(&used.wrapping_sub(self.used)))
    }

    /// The next chain that the device is done with; its entries are free again once it is
    /// [`Queue::release`]d.
    pub fn done(&mut self, memory: &impl Memory) -> Option<Done> {
        if !self.has_done(memory) {
            return None;
        }
        let slot = u64::from(self.used) % ENTRIES as u64;
        self.used = self.used.wrapping_add(1);
        let at = self.base + Self::USED + 4 + 8 * slot;
        let (head, written) = (memory.load32(at)?, memory.load32(at + 4)?);
        // One that cannot be stands for none that anybody waits for.
        Some(Done { head: u16::try_from(head).unwrap_or(NONE), written })
    }

    /// The entries of the chain `head`, which the caller got from [`Queue::add`].
    pub fn chain(&self, head: u16) -> impl Iterator<Item = u16> {
        core::iter::successors(Some(head), |&entry| {
            Some(self.next[usize::from(entry)]).filter(|&next| next != NONE)
        })
    }

    /// Frees the chain `head`, which the caller got from [`Queue::add`].
    pub fn release(&mut self, head: u16) {
        let mut last = head;
        self.count += 1;
        while self.next[usize::from(last)] != NONE {
            last = self.next[usize::from(last)];
            self.count += 1;
        }
        self.next[usize::from(last)] = self.free;
        self.free = head;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::fake::Ram;

    fn buffers(count: usize) -> Vec<Buffer> {
        (0..count as u64).map(|n| Buffer { gpa: n << 12, len: 512, usage: Use::Reads }).collect()
    }

    #[test]
    fn a_chain_is_what_the_device_sees() {
        let ram = Ram::new(2);
        let mut queue = Queue::<128>::new(&ram, 4096);
        let mut chain = buffers(2);
        chain[1].usage = Use::Writes;
        assert_eq!(queue.add(&ram, &chain), Some(0));
        assert!(queue.show(&ram));
        let [descriptors, available, used] = queue.parts();
        assert_eq!(ram.load16(available + 2), Some(1));
        assert_eq!(ram.load16(available + 4), Some(0));
        assert_eq!(ram.load32(descriptors + 12), Some(1 | 1 << 16));
        assert_eq!(ram.load32(descriptors + 16), Some(0x1000));
        assert_eq!(ram.load16(descriptors + 16 + 12), Some(WRITE));
        assert_eq!(queue.done(&ram), None);
        ram.store16(used, NO_NOTIFY).unwrap();
        ram.store16(used + 2, 1).unwrap();
        assert!(!queue.show(&ram));
        ram.store32(used + 8, 77).unwrap();
        assert_eq!(queue.done(&ram), Some(Done { head: 0, written: 77 }));
        assert_eq!(queue.done(&ram), None);
        assert_eq!(queue.chain(0).collect::<Vec<_>>(), [0, 1]);
        queue.interrupts(&ram, Interrupts::Unwanted);
        assert_eq!(ram.load16(available), Some(NO_INTERRUPT));
        queue.interrupts(&ram, Interrupts::Wanted);
        assert_eq!(ram.load16(available), Some(0));
    }

    #[test]
    fn entries_come_back() {
        let ram = Ram::new(2);
        let mut queue = Queue::<128>::new(&ram, 4096);
        for round in 0..400 {
            let mut heads = Vec::new();
            let mut left = 128;
            for len in (1..).map(|n| n * (round % 7 + 1)) {
                match queue.add(&ram, &buffers(len)) {
                    Some(head) => heads.push(head),
                    None => break,
                }
                left -= len;
                assert_eq!(queue.free(), left);
            }
            heads.rotate_left(round % 3);
            for head in heads {
                queue.release(head);
            }
            assert_eq!(queue.free(), 128);
        }
        assert_eq!(queue.add(&ram, &[]), None);
        assert!(queue.add(&ram, &buffers(128)).is_some());
    }

    #[test]
    fn parts_lie_one_behind_the_other() {
        const { assert!(Queue::<256>::AVAILABLE == 4096 && Queue::<256>::USED == 4096 + 520) };
        const { assert!(Queue::<256>::SIZE == 4096 + 520 + 2056) };
        const { assert!(Queue::<128>::SIZE == 3344) };
        let ram = Ram::new(3);
        let queue = Queue::<256>::new(&ram, 4096);
        assert_eq!(queue.parts(), [4096, 8192, 8192 + 520]);
        assert_eq!(queue.free(), 256);
    }

    #[test]
    fn what_the_device_cannot_have_used_is_nobodys() {
        let ram = Ram::new(2);
        let mut queue = Queue::<128>::new(&ram, 4096);
        let used = queue.parts()[2];
        ram.store32(used + 4, u32::MAX).unwrap();
        ram.store16(used + 2, 129).unwrap();
        assert_eq!(queue.done(&ram), None);
        ram.store16(used + 2, 1).unwrap();
        assert_eq!(queue.done(&ram).map(|done| done.head), Some(NONE));
    }
}
