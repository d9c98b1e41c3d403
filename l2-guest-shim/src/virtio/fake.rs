//! The device's end of a queue, for tests.

use super::device::Setup;
use crate::guest_memory::{Memory, fake::Ram};
use pv_abi::virtio::queue::{NEXT, WRITE};

/// A buffer as a device sees it: first byte, bytes, and whether it may write them.
pub type Seen = (u64, usize, bool);

/// The device's end.
#[derive(Debug)]
pub struct Served {
    entries: u64,
    parts: [u64; 3],
    available: u16,
    used: u16,
}

impl Served {
    /// Of a queue that was just made.
    pub fn new((entries, parts): Setup) -> Self {
        Self { entries: entries as u64, parts, available: 0, used: 0 }
    }

    /// The next chain: its number and its buffers.
    pub fn take(&mut self, ram: &Ram) -> Option<(u16, Vec<Seen>)> {
        let [descriptors, available, _] = self.parts;
        if ram.load16(available + 2).unwrap() == self.available {
            return None;
        }
        let slot = u64::from(self.available) % self.entries;
        let head = ram.load16(available + 4 + 2 * slot).unwrap();
        self.available = self.available.wrapping_add(1);
        let (mut entry, mut chain) = (head, Vec::new());
        loop {
            let at = descriptors + 16 * u64::from(entry);
            let mut gpa = [0; 8];
            ram.read(at, &mut gpa).unwrap();
            let len = ram.load32(at + 8).unwrap() as usize;
            let flags = ram.load16(at + 12).unwrap();
            chain.push((u64::from_le_bytes(gpa), len, flags & WRITE != 0));
            if flags & NEXT == 0 {
                return Some((head, chain));
            }
            entry = ram.load16(at + 14).unwrap();
        }
    }

    /// The device is done with the chain `head`, of which it has written so many bytes.
    pub fn put(&mut self, ram: &Ram, head: u32, written: u32) {
        let used = self.parts[2];
        let slot = u64::from(self.used) % self.entries;
        ram.store32(used + 4 + 8 * slot, head).unwrap();
        ram.store32(used + 8 + 8 * slot, written).unwrap();
        self.used = self.used.wrapping_add(1);
        ram.store16(used + 2, self.used).unwrap();
    }
}
