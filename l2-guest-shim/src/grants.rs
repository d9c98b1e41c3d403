//! The grant table: which of its pages the kernel lends to its devices.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! From Xen's public `grant_table.h`, version 1: entries of flags (16 bits), domain (16), frame (32). An
//! entry shows that it is in use, and the kernel takes none back that does. The devices are in the same
//! VM, so the frame that is lent is used where it is. One grant that two requests name at once shows
//! itself free when the first is done: kernels use one for one request.

use crate::guest_memory::Memory;

/// Bytes of an entry.
const ENTRY: u64 = 8;
/// Flags: kinds, and the only one that is known.
const KIND: u32 = 3;
const PERMIT_ACCESS: u32 = 1;
const READ_ONLY: u32 = 1 << 2;
/// The page is being read, or written.
const READING: u32 = 1 << 3;
const WRITING: u32 = 1 << 4;
/// Times that a kernel may change an entry while it is to be marked.
const TRIES: usize = 16;

/// What a device does with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads it.
    Read,
    /// It writes it, and may read it.
    Write,
}

impl Access {
    const fn marks(self) -> u32 {
        match self {
            Self::Read => READING,
            Self::Write => READING | WRITING,
        }
    }
}

/// The table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grants {
    /// Where it is.
    pub table: u64,
    /// Its entries.
    pub entries: u32,
    /// Frames of RAM: no others can be lent.
    pub ram_pages: u64,
}

impl Grants {
    fn entry(&self, reference: u32) -> Option<u64> {
        (reference < self.entries).then(|| self.table + u64::from(reference) * ENTRY)
    }

    /// The page lent as `reference`, marked as in use; `None` if it is not lent for that.
    pub fn begin(&self, memory: &impl Memory, reference: u32, access: Access) -> Option<u64> {
        let at = self.entry(reference)?;
        let mut head = memory.load32(at)?;
        for _ in 0..TRIES {
            // Lent to domain 0, where devices are.
            let lent = head & KIND == PERMIT_ACCESS && head >> 16 == 0;
            if !lent || (access == Access::Write && head & READ_ONLY != 0) {
                return None;
            }
            let frame = u64::from(memory.load32(at + 4)?);
            if frame >= self.ram_pages {
                return None;
            }
            match memory.exchange32(at, head, head | access.marks())? {
                Ok(()) => return Some(frame << 12),
                Err(now) => head = now,
            }
        }
        None
    }

    /// The page is in use no longer.
    pub fn end(&self, memory: &impl Memory, reference: u32, access: Access) {
        let Some(at) = self.entry(reference) else { return };
        let Some(mut head) = memory.load32(at) else { return };
        for _ in 0..TRIES {
            match memory.exchange32(at, head, head & !access.marks()) {
                Some(Err(now)) => head = now,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::fake::Ram;

    const GRANTS: Grants = Grants { table: 0, entries: 512, ram_pages: 8 };

    fn lend(ram: &Ram, reference: u32, head: u32, frame: u32) {
        ram.store32(u64::from(reference) * 8, head).unwrap();
        ram.store32(u64::from(reference) * 8 + 4, frame).unwrap();
    }

    #[test]
    fn a_page_in_use_is_marked() {
        let ram = Ram::new(1);
        lend(&ram, 9, PERMIT_ACCESS, 5);
        assert_eq!(GRANTS.begin(&ram, 9, Access::Read), Some(0x5000));
        assert_eq!(ram.load16(72), Some(9));
        GRANTS.end(&ram, 9, Access::Read);
        assert_eq!(ram.load16(72), Some(1));
        assert_eq!(GRANTS.begin(&ram, 9, Access::Write), Some(0x5000));
        assert_eq!(ram.load16(72), Some(0x19));
        GRANTS.end(&ram, 9, Access::Write);
        assert_eq!(ram.load16(72), Some(1));
    }

    #[test]
    fn what_is_not_lent_is_not_used() {
        let ram = Ram::new(1);
        assert_eq!(GRANTS.begin(&ram, 9, Access::Read), None);
        for (head, frame) in [(0, 5), (2, 5), (3, 5), (1 | 1 << 16, 5), (1, 8), (1, u32::MAX)] {
            lend(&ram, 9, head, frame);
            assert_eq!(GRANTS.begin(&ram, 9, Access::Read), None, "{head:#x} {frame}");
            assert_eq!(ram.load32(72), Some(head));
        }
        lend(&ram, 9, PERMIT_ACCESS | READ_ONLY, 5);
        assert_eq!(GRANTS.begin(&ram, 9, Access::Write), None);
        assert_eq!(GRANTS.begin(&ram, 9, Access::Read), Some(0x5000));
        assert_eq!(GRANTS.begin(&ram, 512, Access::Read), None);
        GRANTS.end(&ram, u32::MAX, Access::Read);
    }
}
