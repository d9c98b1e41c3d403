//! A split virtqueue, the driver's end (virtio 1.2, 2.7), in one page that no front end knows.
//! May: nothing. Context: shim. Input: guest-controlled, for its kernel can write everywhere.
//!
//! What was written into descriptors is never read back: free ones and chains are kept here. What the
//! device, or the kernel, writes into the ring of used ones is checked, and means at worst that a
//! request is taken for done.

use crate::guest_memory::Memory;
use core::sync::atomic::{Ordering::SeqCst, fence};
use pv_abi::virtio::queue::{NEXT, NO_NOTIFY, WRITE};

/// Entries.
pub const ENTRIES: u16 = 128;
/// Bytes of the page that are left for others behind the queue.
pub const REST: u64 = 3392;

/// Offsets in the page: descriptors of 16 bytes; flags, index, heads of 2; flags, index, pairs of 8.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 2048;
const USED: u64 = 2312;
const _: () = assert!(AVAILABLE + 4 + 2 * (ENTRIES as u64) + 2 <= USED && USED.is_multiple_of(4));
const _: () = assert!(USED + 4 + 8 * (ENTRIES as u64) + 2 <= REST);

/// The end of a chain, or of the list of free entries.
const NONE: u8 = u8::MAX;

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

/// The driver's end.
#[derive(Debug)]
pub struct Queue {
    page: u64,
    /// The first free entry, and how many there are.
    free: u8,
    count: u8,
    /// Of each entry, the next of its chain or of the free ones.
    next: [u8; ENTRIES as usize],
    available: u16,
    used: u16,
}

impl Queue {
    /// An empty queue in the page at `page`, which the device does not use yet.
    #[must_use]
    pub fn new(memory: &impl Memory, page: u64) -> Self {
        memory.write(page, &[0; REST as usize]);
        let mut next = [NONE; ENTRIES as usize];
        for (entry, next) in (1..ENTRIES as u8).zip(&mut next) {
            *next = entry;
        }
        Self { page, free: 0, count: ENTRIES as u8, next, available: 0, used: 0 }
    }

    /// Where descriptors, available and used ring are.
    #[must_use]
    pub const fn parts(&self) -> [u64; 3] {
        [self.page + DESCRIPTORS, self.page + AVAILABLE, self.page + USED]
    }

    /// Free entries.
    #[must_use]
    pub const fn free(&self) -> usize {
        self.count as usize
    }

    /// Gives `buffers` to the device as one chain: its number, or `None` if there are more than free
    /// entries, or none. The device need not have been told.
    pub fn add(&mut self, memory: &impl Memory, buffers: &[Buffer]) -> Option<u8> {
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
            descriptor[14..].copy_from_slice(&u16::from(next).to_le_bytes());
            memory.write(self.page + DESCRIPTORS + 16 * u64::from(entry), &descriptor);
            if left == 0 {
                self.next[usize::from(entry)] = NONE;
                self.free = next;
            } else {
                entry = next;
            }
        }
        self.count -= buffers.len() as u8;
        let slot = u64::from(self.available % ENTRIES);
        memory.store16(self.page + AVAILABLE + 4 + 2 * slot, head.into());
        self.available = self.available.wrapping_add(1);
        Some(head)
    }

    /// Shows the device what was added; true if it is to be told.
    #[must_use]
    pub fn show(&self, memory: &impl Memory) -> bool {
        memory.store16(self.page + AVAILABLE + 2, self.available);
        fence(SeqCst);
        memory.load16(self.page + USED).is_none_or(|flags| flags & NO_NOTIFY == 0)
    }

    /// The next chain that the device is done with, by its number; its entries are free again once it
    /// is [`Queue::release`]d.
    pub fn done(&mut self, memory: &impl Memory) -> Option<u8> {
        if memory.load16(self.page + USED + 2)? == self.used {
            return None;
        }
        let slot = u64::from(self.used % ENTRIES);
        self.used = self.used.wrapping_add(1);
        let head = memory.load32(self.page + USED + 4 + 8 * slot)?;
        // One that cannot be stands for none that anybody waits for.
        Some(u8::try_from(head).unwrap_or(NONE))
    }

    /// Frees the chain `head`, which the caller got from [`Queue::add`].
    pub fn release(&mut self, head: u8) {
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
        let mut queue = Queue::new(&ram, 4096);
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
        assert_eq!(queue.done(&ram), Some(0));
        assert_eq!(queue.done(&ram), None);
    }

    #[test]
    fn entries_come_back() {
        let ram = Ram::new(2);
        let mut queue = Queue::new(&ram, 4096);
        for round in 0..400 {
            let mut heads = Vec::new();
            let mut left = usize::from(ENTRIES);
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
            assert_eq!(queue.free(), usize::from(ENTRIES));
        }
        assert_eq!(queue.add(&ram, &[]), None);
        assert!(queue.add(&ram, &buffers(128)).is_some());
    }

    #[test]
    fn what_the_device_cannot_have_used_is_nobodys() {
        let ram = Ram::new(2);
        let mut queue = Queue::new(&ram, 4096);
        let used = queue.parts()[2];
        ram.store32(used + 4, u32::MAX).unwrap();
        ram.store16(used + 2, 1).unwrap();
        assert_eq!(queue.done(&ram), Some(NONE));
    }
}
