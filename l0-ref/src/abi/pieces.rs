//! Bounds the pieces that mappings are in: the system lets a process have only so many.
//! May: read /proc. Input: numbers of pieces.
//!
//! A run of pages that continue each other, in L2 and in L1, is a mapping of this process. The system
//! would refuse one too many half-way through a change, and then L2 could not even be denied a page.
//! So every change asks here first, and is refused before it has begun.

use pv_abi::l0::Status;
use std::{
    fs,
    sync::atomic::{
        AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};

/// Mappings that a process may have, where the system does not say.
const USUAL: u64 = 65_530;
/// Mappings that are left for everything else: code, stacks, vCPUs, reservations, and pages that are
/// in transit.
const OTHERS: u64 = 8192;

/// How many runs the maps of all VMs have, and may have.
#[derive(Debug)]
pub struct Pieces {
    used: AtomicU64,
    most: u64,
}

impl Pieces {
    /// At most `most` runs.
    #[must_use]
    pub const fn new(most: u64) -> Self {
        Self { used: AtomicU64::new(0), most }
    }

    /// As many as this system can bear.
    #[must_use]
    pub fn of_this_system() -> Self {
        let told = fs::read_to_string("/proc/sys/vm/max_map_count").ok();
        let mappings = told.and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL);
        Self::new(mappings.saturating_sub(OTHERS))
    }

    /// Sets room for `more` runs aside, until [`Self::settle`].
    ///
    /// # Errors
    /// NO_MEMORY: there is none.
    pub fn reserve(&self, more: u64) -> Result<(), Status> {
        let fits = |used: u64| used.checked_add(more).filter(|sum| more == 0 || *sum <= self.most);
        self.used.fetch_update(SeqCst, Relaxed, fits).map(drop).map_err(|_| Status::NoMemory)
    }

    /// A map that had `before` runs when `more` were set aside has `after` now.
    pub fn settle(&self, more: u64, before: usize, after: usize) {
        let change = (after as u64).wrapping_sub(before as u64).wrapping_sub(more);
        self.used.fetch_add(change, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::l1_stub::L1;
    use pv_abi::l0::{Op, list::MapRange, page::Args};

    const PAGE: u64 = 4096;

    #[test]
    fn what_is_set_aside_is_taken_or_given_back() {
        let pieces = Pieces::new(3);
        assert_eq!(pieces.reserve(4), Err(Status::NoMemory));
        assert_eq!(pieces.reserve(2), Ok(()));
        pieces.settle(2, 0, 2);
        assert_eq!(pieces.reserve(2), Err(Status::NoMemory));
        assert_eq!(pieces.reserve(1), Ok(()));
        // Runs became one.
        pieces.settle(1, 2, 1);
        assert_eq!(pieces.used.load(SeqCst), 1);
        pieces.settle(0, 1, 0);
        assert_eq!(pieces.reserve(3), Ok(()));
        assert_eq!(pieces.reserve(0), Ok(()), "what needs no room has it");
    }

    #[test]
    fn this_system_bears_some() {
        assert!(Pieces::of_this_system().most > 1000);
    }

    /// What the memory of VM 0 is in, as the system sees it.
    fn mappings(l1: &L1) -> u64 {
        let vm = l1.server.vm(&Args::default()).unwrap();
        let (start, pages) = {
            let inner = vm.lock();
            (inner.places[0].alias.start(), inner.places[0].alias.pages())
        };
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let first = |line: &str| u64::from_str_radix(line.split('-').next()?, 16).ok();
        let ours = start..start + pages * PAGE;
        maps.lines().filter(|line| first(line).is_some_and(|at| ours.contains(&at))).count() as u64
    }

    /// Memory is cut in no more pieces than there may be, and what is refused has not begun.
    #[test]
    fn one_piece_too_many_is_refused() {
        const MOST: u64 = 20;
        const PAGES: u64 = 1024;
        const FRAMES: u64 = 1 << 20;
        let mut l1 = L1::new(16);
        l1.server.pieces = Pieces::new(MOST);
        l1.create(0, PAGES);
        let range =
            |first: u64, pages| MapRange { gpa: first * PAGE, pages, ..MapRange::default() };
        let mapped = |range: MapRange| MapRange { l1: FRAMES + range.gpa, access: 7, ..range };
        let all = range(0, PAGES);
        assert_eq!(l1.one(0, Op::Map, mapped(all)), Status::Ok);
        // One run at first, and one more with each hole.
        for hole in 1..MOST {
            assert_eq!(l1.one(0, Op::Unmap, range(10 * hole, 1)), Status::Ok);
        }
        assert_eq!(mappings(&l1), MOST);
        let middle = range(500, 1);
        assert_eq!(l1.one(0, Op::Unmap, middle), Status::NoMemory);
        assert_eq!(l1.one(0, Op::Protect, MapRange { access: 5, ..middle }), Status::NoMemory);
        assert_eq!(l1.one(0, Op::Map, mapped(range(10, 1))), Status::Ok, "fills a hole");
        assert_eq!(l1.one(0, Op::Unmap, middle), Status::Ok, "there is room again");
        // Unmapping more makes no pieces, and so is never refused.
        assert_eq!(l1.one(0, Op::Unmap, range(700, 1)), Status::NoMemory);
        assert_eq!(l1.one(0, Op::Unmap, range(700, PAGES - 700)), Status::Ok);
        assert_eq!(l1.one(0, Op::Unmap, all), Status::Ok);
        assert_eq!(mappings(&l1), 0);
    }
}
