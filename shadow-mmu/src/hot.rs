//! Remembers which guest tables are being written, so that a flush costs what changed.
//! May: nothing. Context: run-loop.
//!
//! A shadowed guest table is *hot* or *protected*. A hot table may be written freely; whether it
//! was is read off the D bits of the entries that map it. A protected one is mapped read-only
//! everywhere, so it need not be looked at; its first write makes it hot. Tables are born hot, for
//! they are about to be filled. One that was found clean so often that the looks have cost as much
//! as the fault they saved is protected (at most twice the cost of knowing the future: the rule
//! for renting or buying skis), and so is the one clean for longest when the list is full.

use crate::{
    mutant::{Mutant, planted},
    primitive::{
        AtomicU64, Mutex,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};
use alloc::{boxed::Box, vec::Vec};
use arrayvec::ArrayVec;
use pv_abi::addr::Gfn;

/// Hot tables at most. Tests keep the list short, so that tables really become protected.
pub(crate) const HOT: usize = if cfg!(loom) {
    2
} else if cfg!(test) {
    4
} else {
    32
};

/// Looks that find a table clean before it is protected. A look costs about 60 instructions, the
/// fault that makes a table hot again about 1500.
const PATIENCE: u32 = if cfg!(test) { 3 } else { 24 };

/// A hot table.
#[derive(Clone, Copy, Debug)]
struct Hot {
    gfn: Gfn,
    /// Looks since it was last found written.
    clean: u32,
    /// vCPUs that have taken its D bits and not compared it yet.
    pending: u32,
    /// Tells this stay on the list from others.
    stay: u32,
}

/// A table whose D bits were taken. Until [`HotList::done`] every look finds it written: a flush
/// that comes second must not return before the stores that it stands for are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) gfn: Gfn,
    stay: u32,
}

/// The hot tables, in no order.
#[derive(Debug, Default)]
struct List {
    tables: ArrayVec<Hot, HOT>,
    stays: u32,
}

impl List {
    fn find(&mut self, gfn: Gfn) -> Option<&mut Hot> {
        self.tables.iter_mut().find(|hot| hot.gfn == gfn)
    }
}

impl Hot {
    fn take(&mut self) -> Taken {
        self.pending += 1;
        Taken { gfn: self.gfn, stay: self.stay }
    }
}

/// The list of hot tables.
#[derive(Debug)]
pub(crate) struct HotList(Mutex<List>);

/// What a look at all hot tables found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Written since the last look, or taken by somebody who is not done.
    pub(crate) written: ArrayVec<Taken, HOT>,
    /// Clean for so long that they should be protected.
    pub(crate) cold: ArrayVec<Gfn, HOT>,
}

impl HotList {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(List::default()))
    }

    /// True if no table is hot.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().tables.is_empty()
    }

    /// Adds `gfn` if `wanted`, which is called before anybody else sees the list.
    ///
    /// # Errors
    /// The list is full: the table to protect first.
    pub(crate) fn add(&self, gfn: Gfn, wanted: impl FnOnce() -> bool) -> Result<(), Gfn> {
        let mut list = self.0.lock();
        let listed = list.find(gfn).is_some();
        if !listed && list.tables.is_full() {
            let oldest = list.tables.iter().max_by_key(|hot| hot.clean);
            return oldest.map_or(Ok(()), |hot| Err(hot.gfn));
        }
        if wanted() && !listed {
            list.stays = list.stays.wrapping_add(1);
            let stay = list.stays;
            list.tables.push(Hot { gfn, clean: 0, pending: 0, stay });
        }
        Ok(())
    }

    /// Calls `then` if `gfn` is listed, before it can leave the list. The caller takes the D bits.
    pub(crate) fn take(&self, gfn: Gfn, then: impl FnOnce()) -> Option<Taken> {
        let mut list = self.0.lock();
        let taken = list.find(gfn)?.take();
        then();
        Some(taken)
    }

    /// What `then` returns if the table of `taken` is still listed; false if it ended meanwhile. It may
    /// have begun anew, and then its D bits are for others to take: nobody waits for the caller's
    /// compare.
    pub(crate) fn while_listed(&self, taken: Taken, then: impl FnOnce() -> bool) -> bool {
        let mut list = self.0.lock();
        list.find(taken.gfn).is_some_and(|hot| hot.stay == taken.stay) && then()
    }

    /// All of `taken` have been compared.
    pub(crate) fn done(&self, taken: &[Taken]) {
        let mut list = self.0.lock();
        for taken in taken {
            if let Some(hot) = list.find(taken.gfn).filter(|hot| hot.stay == taken.stay) {
                hot.pending -= 1;
            }
        }
    }

    /// Drops `gfn` if `condition` holds and nobody's compare is pending.
    pub(crate) fn remove_if(&self, gfn: Gfn, condition: impl FnOnce() -> bool) {
        let mut list = self.0.lock();
        let index = list.tables.iter().position(|hot| hot.gfn == gfn && hot.pending == 0);
        if let Some(index) = index
            && condition()
        {
            list.tables.swap_remove(index);
        }
    }

    /// Drops `gfn`.
    pub(crate) fn remove(&self, gfn: Gfn) {
        self.0.lock().tables.retain(|hot| hot.gfn != gfn);
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn tables(&self) -> ArrayVec<Gfn, HOT> {
        self.0.lock().tables.iter().map(|hot| hot.gfn).collect()
    }

    /// Looks at every table and adds to `look`: `written` tells whether a table was written since
    /// it was last called.
    #[inline]
    pub(crate) fn look(&self, look: &mut Look, mut written: impl FnMut(Gfn) -> bool) {
        for hot in &mut self.0.lock().tables {
            if written(hot.gfn) || hot.pending != 0 && !planted(Mutant::PendingIgnored) {
                hot.clean = 0;
                look.written.push(hot.take());
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn look(list: &HotList, written: impl FnMut(Gfn) -> bool) -> Look {
        let mut look = Look::default();
        list.look(&mut look, written);
        list.done(&look.written);
        look
    }

    #[test]
    fn a_full_list_asks_for_room() {
        let list = HotList::new();
        for gfn in 0..HOT as u64 {
            assert_eq!(list.add(Gfn(gfn), || true), Ok(()));
        }
        assert_eq!(list.add(Gfn(3), || true), Ok(()), "already there");
        look(&list, |gfn| gfn != Gfn(1));
        let room = list.add(Gfn(100), || panic!("there is no room"));
        assert_eq!(room, Err(Gfn(1)), "the one clean for longest");
        list.remove_if(Gfn(1), || false);
        assert_eq!(list.add(Gfn(100), || true), Err(Gfn(1)), "still there");
        list.remove_if(Gfn(1), || true);
        assert_eq!(list.add(Gfn(100), || false), Ok(()), "not wanted");
        assert_eq!(list.add(Gfn(101), || true), Ok(()));
        assert!(list.take(Gfn(100), || ()).is_none());
        assert!(list.take(Gfn(101), || ()).is_some());
    }

    #[test]
    fn what_was_taken_is_written_until_it_was_compared() {
        let list = HotList::new();
        list.add(Gfn(1), || true).unwrap();
        let first = list.take(Gfn(1), || ()).unwrap();
        let mut second = Look::default();
        list.look(&mut second, |_| false);
        assert_eq!(second.written[..], [first]);
        list.remove_if(Gfn(1), || true);
        list.done(&[first]);
        assert_eq!(look(&list, |_| false).written[..], [first], "the second is not done");
        list.done(&second.written);
        assert!(look(&list, |_| false).written.is_empty());
        list.remove(Gfn(1));
        list.add(Gfn(1), || true).unwrap();
        let mut third = Look::default();
        list.look(&mut third, |_| true);
        list.done(&[first]);
        assert!(!look(&list, |_| false).written.is_empty(), "another stay");
    }

    #[test]
    fn patience_ends_for_clean_tables_only() {
        let list = HotList::new();
        for gfn in 0..2 {
            assert_eq!(list.add(Gfn(gfn), || true), Ok(()));
        }
        for _ in 1..PATIENCE {
            assert!(look(&list, |gfn| gfn == Gfn(0)).cold.is_empty());
        }
        let seen = look(&list, |gfn| gfn == Gfn(0));
        assert_eq!(seen.written.iter().map(|taken| taken.gfn).collect::<Vec<_>>(), [Gfn(0)]);
        assert_eq!(seen.cold[..], [Gfn(1)]);
    }
}
