//! Remembers which guest tables are being written, so that a flush costs what changed.
//! May: nothing. Context: run-loop.
//!
//! A shadowed guest table is *hot* or *protected*. A hot table may be written freely; whether it
//! was is read off the D bits of the entries that map it. A protected one is mapped read-only
//! everywhere, so it need not be looked at; its first write makes it hot. Tables are born hot, for
//! they are about to be filled, and the oldest hot one that was not written lately is protected
//! when the list is full.

use crate::primitive::{
    AtomicU64, Mutex,
    Ordering::{Acquire, Relaxed, Release},
};
use alloc::{boxed::Box, vec::Vec};
use arrayvec::ArrayVec;
use pv_abi::addr::Gfn;

/// Hot tables at most. A flush looks at each: about ten instructions when it is clean. Tests keep
/// the list short, so that tables really become protected.
pub(crate) const HOT: usize = if cfg!(test) { 4 } else { 32 };

/// The hot tables, oldest first.
#[derive(Debug)]
pub(crate) struct HotList(Mutex<ArrayVec<Gfn, HOT>>);

pub(crate) type Snapshot = ArrayVec<Gfn, HOT>;

impl HotList {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(ArrayVec::new_const()))
    }

    /// Adds `gfn`; returns the table that had to make room.
    pub(crate) fn add(&self, gfn: Gfn) -> Option<Gfn> {
        let mut list = self.0.lock();
        if list.contains(&gfn) {
            return None;
        }
        let evicted = list.is_full().then(|| list.remove(0));
        list.push(gfn);
        evicted
    }

    /// Drops `gfn`, which is no table any more.
    pub(crate) fn forget(&self, gfn: Gfn) {
        let mut list = self.0.lock();
        if let Some(index) = list.iter().position(|&hot| hot == gfn) {
            list.remove(index);
        }
    }

    /// Moves tables that were found written to the young end.
    pub(crate) fn touch(&self, gfn: Gfn) {
        let mut list = self.0.lock();
        if let Some(index) = list.iter().position(|&hot| hot == gfn) {
            list[index..].rotate_left(1);
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.0.lock().clone()
    }
}

/// One bit per guest frame.
#[derive(Debug)]
pub(crate) struct Bitmap(Box<[AtomicU64]>);

impl Bitmap {
    pub(crate) fn new(frames: u64) -> Self {
        let words: Vec<_> = (0..frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self(words.into_boxed_slice())
    }

    #[inline]
    pub(crate) fn get(&self, gfn: Gfn) -> bool {
        self.0
            .get(gfn.0 as usize / 64)
            .is_some_and(|word| word.load(Acquire) >> (gfn.0 % 64) & 1 == 1)
    }

    pub(crate) fn set(&self, gfn: Gfn) {
        if let Some(word) = self.0.get(gfn.0 as usize / 64) {
            word.fetch_or(1 << (gfn.0 % 64), Release);
        }
    }

    pub(crate) fn clear(&self, gfn: Gfn) {
        if let Some(word) = self.0.get(gfn.0 as usize / 64) {
            word.fetch_and(!(1 << (gfn.0 % 64)), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_list_evicts_its_oldest() {
        let list = HotList::new();
        for gfn in 0..HOT as u64 {
            assert_eq!(list.add(Gfn(gfn)), None);
        }
        assert_eq!(list.add(Gfn(3)), None, "already there");
        list.touch(Gfn(0));
        assert_eq!(list.add(Gfn(100)), Some(Gfn(1)), "the oldest but the one just touched");
        list.forget(Gfn(2));
        assert_eq!(list.add(Gfn(101)), None);
        assert_eq!(list.snapshot().len(), HOT);
    }
}
