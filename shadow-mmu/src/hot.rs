//! Remembers which guest tables are being written, so that a flush costs what changed.
//! May: nothing. Context: run-loop.
//!
//! A shadowed guest table is *hot* or *protected*. A hot table may be written freely; whether it
//! was is read off the D bits of the entries that map it. A protected one is mapped read-only
//! everywhere, so it need not be looked at; its first write makes it hot. Tables are born hot, for
//! they are about to be filled. One that was found clean so often that the looks have cost as much
//! as the fault they saved is protected (at most twice the cost of knowing the future: the rule
//! for renting or buying skis), and so is the one clean for longest when the list is full.

use crate::primitive::{
    AtomicU64, Mutex,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use alloc::{boxed::Box, vec::Vec};
use arrayvec::ArrayVec;
use pv_abi::addr::Gfn;

/// Hot tables at most. Tests keep the list short, so that tables really become protected.
pub(crate) const HOT: usize = if cfg!(test) { 4 } else { 32 };

/// Looks that find a table clean before it is protected. A look costs about 60 instructions, the
/// fault that makes a table hot again about 1500.
const PATIENCE: u32 = if cfg!(test) { 3 } else { 24 };

/// A hot table.
#[derive(Clone, Copy, Debug)]
struct Hot {
    gfn: Gfn,
    /// Looks since it was last found written.
    clean: u32,
}

/// The hot tables, in no order.
#[derive(Debug)]
pub(crate) struct HotList(Mutex<ArrayVec<Hot, HOT>>);

pub(crate) type Tables = ArrayVec<Gfn, HOT>;

/// What a look at all hot tables found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Written since the last look.
    pub(crate) written: Tables,
    /// Clean for so long that they should be protected.
    pub(crate) cold: Tables,
}

impl HotList {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(ArrayVec::new_const()))
    }

    /// Adds `gfn`, and calls `added` before anybody else sees the list.
    ///
    /// # Errors
    /// The list is full: the table to protect first.
    pub(crate) fn add(&self, gfn: Gfn, added: impl FnOnce()) -> Result<(), Gfn> {
        let mut list = self.0.lock();
        if !list.iter().any(|hot| hot.gfn == gfn) {
            if list.is_full() {
                let oldest = list.iter().max_by_key(|hot| hot.clean);
                return oldest.map_or(Ok(()), |hot| Err(hot.gfn));
            }
            list.push(Hot { gfn, clean: 0 });
        }
        added();
        Ok(())
    }

    /// Calls `then` if `gfn` is listed, before it can leave the list. True if it was.
    pub(crate) fn while_listed(&self, gfn: Gfn, then: impl FnOnce()) -> bool {
        let list = self.0.lock();
        let listed = list.iter().any(|hot| hot.gfn == gfn);
        if listed {
            then();
        }
        listed
    }

    /// Drops `gfn` if `condition` holds.
    pub(crate) fn remove_if(&self, gfn: Gfn, condition: impl FnOnce() -> bool) {
        let mut list = self.0.lock();
        if let Some(index) = list.iter().position(|hot| hot.gfn == gfn)
            && condition()
        {
            list.swap_remove(index);
        }
    }

    #[cfg(test)]
    pub(crate) fn tables(&self) -> Tables {
        self.0.lock().iter().map(|hot| hot.gfn).collect()
    }

    /// Looks at every table and adds to `look`: `written` tells whether a table was written since
    /// it was last called.
    #[inline]
    pub(crate) fn look(&self, look: &mut Look, mut written: impl FnMut(Gfn) -> bool) {
        for hot in self.0.lock().iter_mut() {
            if written(hot.gfn) {
                hot.clean = 0;
                look.written.push(hot.gfn);
            } else {
                hot.clean += 1;
                if hot.clean >= PATIENCE {
                    look.cold.push(hot.gfn);
                }
            }
        }
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

    /// Clears the 64 bits from `first` on, and returns them.
    pub(crate) fn take_word(&self, first: Gfn) -> u64 {
        self.0.get(first.0 as usize / 64).map_or(0, |word| word.swap(0, AcqRel))
    }

    pub(crate) fn clear_all(&self) {
        self.0.iter().for_each(|word| word.store(0, Release));
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

    fn look(list: &HotList, written: impl FnMut(Gfn) -> bool) -> Look {
        let mut look = Look::default();
        list.look(&mut look, written);
        look
    }

    #[test]
    fn a_full_list_asks_for_room() {
        let list = HotList::new();
        for gfn in 0..HOT as u64 {
            assert_eq!(list.add(Gfn(gfn), || ()), Ok(()));
        }
        assert_eq!(list.add(Gfn(3), || ()), Ok(()), "already there");
        look(&list, |gfn| gfn != Gfn(1));
        let mut called = false;
        assert_eq!(list.add(Gfn(100), || called = true), Err(Gfn(1)), "the one clean for longest");
        assert!(!called);
        list.remove_if(Gfn(1), || false);
        assert_eq!(list.add(Gfn(100), || ()), Err(Gfn(1)), "still there");
        list.remove_if(Gfn(1), || true);
        assert_eq!(list.add(Gfn(100), || called = true), Ok(()));
        assert!(called);
    }

    #[test]
    fn patience_ends_for_clean_tables_only() {
        let list = HotList::new();
        for gfn in 0..2 {
            assert_eq!(list.add(Gfn(gfn), || ()), Ok(()));
        }
        for _ in 1..PATIENCE {
            assert!(look(&list, |gfn| gfn == Gfn(0)).cold.is_empty());
        }
        let seen = look(&list, |gfn| gfn == Gfn(0));
        assert_eq!((&seen.written[..], &seen.cold[..]), (&[Gfn(0)][..], &[Gfn(1)][..]));
    }
}
