//! Remembers the last exits of a vCPU, to be told when its guest has died.
//! May: alloc. Context: irq-off. Input: guest-controlled registers, as numbers only.

use crate::stats::Reason;
use alloc::{boxed::Box, vec};
use core::fmt;
use switcher::{Exit, exit};

/// Exits that are remembered.
pub const SIZE: usize = 256;
/// Exits of each vCPU that are told: a serial port takes its time.
pub const TOLD: usize = 64;

/// The number of no [`Reason`].
const UNHANDLED: u8 = u8::MAX;
/// Bit of [`Entry::place`]: the kernel ran.
const SUPERVISOR: u8 = 0x80;

/// One exit.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Entry {
    tsc: u64,
    rip: u64,
    detail: u64,
    error: u32,
    left: u16,
    handled: u8,
    place: u8,
}

const _: () = assert!(size_of::<Entry>() == 32);

impl Entry {
    /// An exit at TSC `tsc` on CPU `cpu` from the kernel or, if not `supervisor`, a program. `left` is
    /// the switcher's reason; `detail` belongs to it: a page fault's address, RAX of a SYSCALL.
    #[must_use]
    pub const fn new(
        tsc: u64,
        cpu: usize,
        supervisor: bool,
        left: u64,
        error: u64,
        rip: u64,
        detail: u64,
    ) -> Self {
        let place = cpu as u8 & !SUPERVISOR | if supervisor { SUPERVISOR } else { 0 };
        let (error, left) = (error as u32, left as u16);
        Self { tsc, rip, detail, error, left, handled: UNHANDLED, place }
    }

    /// When it was, as a TSC value.
    #[must_use]
    pub const fn tsc(&self) -> u64 {
        self.tsc
    }
}

/// Without the time: where it was, what the CPU said, what L1 made of it, and the numbers.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.place & SUPERVISOR != 0 { "smod" } else { "umod" };
        write!(f, "cpu={} {mode} ", self.place & !SUPERVISOR)?;
        let left = Exit::decode(self.left.into(), self.error.into());
        match left {
            Exit::Syscall => write!(f, "syscall")?,
            Exit::Syscall32 => write!(f, "syscall32")?,
            Exit::Exception(vector, _) => write!(f, "exception-{vector}")?,
            Exit::Interrupt(vector) => write!(f, "interrupt-{vector}")?,
            Exit::FailedEntry(vector) => write!(f, "failed-entry-{vector}")?,
            Exit::Virtual8086(vector) => write!(f, "virtual-8086-{vector}")?,
            Exit::Lost => f.write_str("lost")?,
        }
        let reason = Reason::ALL.get(usize::from(self.handled));
        write!(f, " {} rip={:#x}", reason.map_or("-", |(_, name)| name), self.rip)?;
        match left {
            Exit::Syscall | Exit::Syscall32 => write!(f, " rax={:#x}", self.detail),
            Exit::Exception(pv_abi::event::PF, error) => {
                write!(f, " error={error:#x} cr2={:#x}", self.detail)
            }
            Exit::Exception(..) | Exit::FailedEntry(_) => write!(f, " error={:#x}", self.error),
            Exit::Interrupt(_) | Exit::Virtual8086(_) | Exit::Lost => Ok(()),
        }
    }
}

/// The last exits of one vCPU.
#[derive(Debug)]
pub struct Ring {
    entries: Box<[Entry]>,
    /// All that ever were.
    count: usize,
}

impl Ring {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self { entries: vec![Entry::default(); SIZE].into(), count: 0 }
    }

    /// Adds one; the oldest goes.
    pub fn add(&mut self, entry: Entry) {
        self.entries[self.count % SIZE] = entry;
        self.count += 1;
    }

    /// The last one was for `reason`.
    pub fn handled(&mut self, reason: Reason) {
        if let Some(last) = self.count.checked_sub(1) {
            self.entries[last % SIZE].handled = reason as u8;
        }
    }

    /// The last `most` exits, the oldest first.
    pub fn last(&self, most: usize) -> impl Iterator<Item = &Entry> {
        let first = self.count.saturating_sub(most.min(SIZE));
        (first..self.count).map(|number| &self.entries[number % SIZE])
    }
}

impl Default for Ring {
    fn default() -> Self {
        Self::new()
    }
}

/// [`Entry::new`]'s `detail` for the switcher's reason `left`.
#[must_use]
pub fn detail(left: u64, rax: u64, cr2: impl FnOnce() -> u64) -> u64 {
    const PAGE_FAULT: u64 = pv_abi::event::PF as u64;
    match left {
        exit::SYSCALL | exit::SYSCALL32 => rax,
        PAGE_FAULT => cr2(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{string::ToString, vec::Vec};

    fn at(tsc: u64) -> Entry {
        Entry::new(tsc, 0, true, exit::SYSCALL, 0, 0x1000, 7)
    }

    #[test]
    fn the_oldest_goes() {
        let mut ring = Ring::new();
        ring.handled(Reason::Timer);
        assert_eq!(ring.last(TOLD).count(), 0);
        for tsc in 0..SIZE as u64 + 3 {
            ring.add(at(tsc));
        }
        let all: Vec<_> = ring.last(usize::MAX).map(Entry::tsc).collect();
        assert_eq!(all, (3..SIZE as u64 + 3).collect::<Vec<_>>());
        let two: Vec<_> = ring.last(2).map(Entry::tsc).collect();
        assert_eq!(two, [SIZE as u64 + 1, SIZE as u64 + 2]);
    }

    #[test]
    fn entries_say_what_they_are_about() {
        let mut ring = Ring::new();
        ring.add(at(1));
        assert_eq!(
            ring.last(1).next().unwrap().to_string(),
            "cpu=0 smod syscall - rip=0x1000 rax=0x7"
        );
        ring.handled(Reason::Invlpg);
        let text = ring.last(1).next().unwrap().to_string();
        assert_eq!(text, "cpu=0 smod syscall invlpg rip=0x1000 rax=0x7");
        ring.add(Entry::new(2, 63, false, 14, 6, 0x2000, detail(14, 1, || 0x3000)));
        ring.handled(Reason::PageFaultFilled);
        let text = ring.last(1).next().unwrap().to_string();
        let expected = "cpu=63 umod exception-14 page_fault_filled rip=0x2000 error=0x6 cr2=0x3000";
        assert_eq!(text, expected);
        let text = Entry::new(2, 1, false, 0xec, 0, 0x2000, 0).to_string();
        assert_eq!(text, "cpu=1 umod interrupt-236 - rip=0x2000");
        let text = Entry::new(2, 1, false, exit::FAILED_ENTRY | 13, 0x20, 0x2000, 0).to_string();
        assert_eq!(text, "cpu=1 umod failed-entry-13 - rip=0x2000 error=0x20");
    }

    #[test]
    fn what_a_detail_is() {
        assert_eq!(detail(exit::SYSCALL, 5, || panic!("CR2 is read")), 5);
        assert_eq!(detail(0x40, 5, || panic!("CR2 is read")), 0);
    }
}
