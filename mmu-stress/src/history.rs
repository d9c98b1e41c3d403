//! What each guest entry has been, and when: versions with intervals on one logical clock.
//!
//! A version begins before its store can be seen and ends after the next store is done, so an
//! instant at which both count lies between. A store that the guest announces by a note ends its
//! predecessor only when the note has been dealt with.

use crate::{
    bits::{A, D, P, W},
    step::entry,
};
use arrayvec::ArrayVec;
use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, SeqCst},
        },
    },
};

/// A point in logical time.
pub type Time = u64;
/// Not over yet.
pub const OPEN: Time = Time::MAX;
/// Versions of an entry that are remembered.
pub const REMEMBERED: usize = 24;

/// The logical clock of a VM. It ticks with every store to a table.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// Advances, and returns the new time.
    pub fn tick(&self) -> Time {
        self.0.fetch_add(1, SeqCst) + 1
    }

    /// The time. Whatever has ticked before is not later.
    #[inline]
    pub fn now(&self) -> Time {
        self.0.load(SeqCst)
    }

    /// A time that is later than the end of everything that is over.
    #[inline]
    pub fn after_now(&self) -> Time {
        self.now() + 1
    }
}

/// How a store makes itself known, and so when the value before it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// The MMU finds it; the old value is over when the store is done.
    Direct,
    /// A note was pushed; the old value is over when it was drained.
    Note,
    /// Nobody tells (notes, a root that is not pinned).
    Silent,
}

/// A value of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Version {
    /// What was stored; once it is replaced, with the A and D that it got.
    pub value: u64,
    /// First instant at which it may have been seen.
    pub from: Time,
    /// Last instant at which it may have been; OPEN if that is not known yet.
    pub until: Time,
    /// How its end was told.
    pub end: Telling,
    serial: u64,
}

impl Version {
    /// The value of an entry that never changes.
    pub const fn constant(value: u64) -> Self {
        Self { value, from: 0, until: OPEN, end: Telling::Direct, serial: 0 }
    }
}

/// What a guest store does to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Replaces it.
    Set(u64),
    /// Sets and clears bits, in one atomic step.
    Bits {
        /// Bits to set.
        set: u64,
        /// Bits to clear.
        clear: u64,
    },
}

impl Change {
    fn apply(self, word: &AtomicU64) -> (u64, u64) {
        match self {
            Self::Set(value) => (word.swap(value, SeqCst), value),
            Self::Bits { set, clear } => {
                let next = |old: u64| old & !clear | set;
                let old = word.fetch_update(SeqCst, SeqCst, |old| Some(next(old)));
                let old = old.unwrap_or_else(|old| old);
                (old, next(old))
            }
        }
    }
}

/// Somebody other than the guest has changed an entry in a way the MMU must not (I5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tampered {
    /// What was stored.
    pub stored: u64,
    /// What was found.
    pub found: u64,
}

impl fmt::Display for Tampered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "was stored as {} and is {}", entry(self.stored), entry(self.found))
    }
}

/// A store that was done.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// The value before.
    pub old: u64,
    /// Names the version that it ended, for [`History::close`].
    pub serial: u64,
}

/// The versions of one entry, oldest first.
#[derive(Debug)]
pub struct History {
    versions: ArrayVec<Version, REMEMBERED>,
    /// The latest end of a version that was dropped: what is known begins after it.
    forgotten: Option<Time>,
    next: u64,
}

impl History {
    fn new(value: u64) -> Self {
        Self {
            versions: [Version::constant(value)].into_iter().collect(),
            forgotten: None,
            next: 1,
        }
    }

    fn last(&mut self) -> &mut Version {
        let last = self.versions.len() - 1;
        &mut self.versions[last]
    }

    /// Changes `word`. `telling` is asked, with the value before, once the store can be seen.
    ///
    /// # Errors
    /// [`Tampered`].
    pub fn store(
        &mut self,
        clock: &Clock,
        word: &AtomicU64,
        change: Change,
        telling: impl FnOnce(u64) -> Telling,
    ) -> Result<Stored, Tampered> {
        let from = clock.tick();
        let (old, new) = change.apply(word);
        let end = telling(old);
        let last = self.last();
        check(last.value, old)?;
        last.value = old;
        last.end = end;
        let stored = Stored { old, serial: last.serial };
        last.until = if end == Telling::Note { OPEN } else { clock.tick() };
        if self.versions.is_full() {
            self.forget();
        }
        let serial = self.next;
        self.next += 1;
        self.versions.push(Version { value: new, from, until: OPEN, end: Telling::Direct, serial });
        Ok(stored)
    }

    /// Drops the oldest version that is over, or the oldest of all.
    fn forget(&mut self) {
        let over = self.versions.iter().position(|version| version.until != OPEN);
        let dropped = self.versions.remove(over.unwrap_or(0));
        self.forgotten = self.forgotten.max(Some(dropped.until));
    }

    /// The note about the end of version `serial` has been dealt with at `time`.
    pub fn close(&mut self, serial: u64, time: Time) {
        if let Some(version) = self.versions.iter_mut().find(|version| version.serial == serial) {
            version.until = version.until.min(time);
        }
    }

    /// The versions that count at some instant from `start` to `now`. False if some may have been
    /// forgotten.
    pub fn during(
        &self,
        word: &AtomicU64,
        start: Time,
        now: Time,
        versions: &mut ArrayVec<Version, REMEMBERED>,
    ) -> bool {
        let last = self.versions.len() - 1;
        for (number, version) in self.versions.iter().enumerate().rev() {
            if version.until >= start && version.from <= now {
                let current = number == last;
                let value = if current { word.load(Acquire) } else { version.value };
                versions.push(Version { value, ..*version });
            }
        }
        self.forgotten.is_none_or(|forgotten| forgotten < start)
    }

    /// Compares the entry with what was stored last.
    ///
    /// # Errors
    /// [`Tampered`].
    pub fn check(&mut self, word: &AtomicU64) -> Result<(), Tampered> {
        check(self.last().value, word.load(Acquire))
    }

    /// All that is remembered, oldest first.
    pub fn versions(&self) -> impl DoubleEndedIterator<Item = &Version> {
        self.versions.iter()
    }
}

/// The MMU may set A in an entry that is present, and D in one that may be written, and nothing
/// else.
fn check(stored: u64, found: u64) -> Result<(), Tampered> {
    let gained = found & !stored;
    let lost = stored & !found;
    let allowed = match (stored & P != 0, stored & W != 0) {
        (false, _) => 0,
        (true, false) => A,
        (true, true) => A | D,
    };
    if lost != 0 || gained & !allowed != 0 {
        return Err(Tampered { stored, found });
    }
    Ok(())
}

/// An entry with a history.
#[derive(Debug)]
pub struct Tracked(Mutex<History>);

impl Tracked {
    /// An entry that has had one value so far.
    pub fn new(value: u64) -> Self {
        Self(Mutex::new(History::new(value)))
    }

    /// Its history; nobody else stores to it meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn during(history: &History, word: &AtomicU64, start: Time, now: Time) -> Vec<u64> {
        let mut versions = ArrayVec::new();
        assert!(history.during(word, start, now, &mut versions));
        versions.iter().map(|version| version.value).collect()
    }

    fn set(history: &mut History, clock: &Clock, word: &AtomicU64, value: u64, telling: Telling) {
        let stored = history.store(clock, word, Change::Set(value), |_| telling);
        assert!(stored.is_ok());
    }

    #[test]
    fn a_value_counts_from_its_store_to_the_end_of_the_next() {
        let (clock, word) = (Clock::default(), AtomicU64::new(16));
        let mut history = History::new(16);
        set(&mut history, &clock, &word, 32, Telling::Direct);
        assert_eq!(during(&history, &word, 0, clock.now()), [32, 16]);
        let after = clock.after_now();
        assert_eq!(during(&history, &word, after, after), [32]);
        assert_eq!(during(&history, &word, clock.now(), clock.now()), [32, 16], "its last instant");
        set(&mut history, &clock, &word, 64, Telling::Direct);
        assert_eq!(during(&history, &word, after, clock.now()), [64, 32]);
        assert_eq!(during(&history, &word, 0, 1), [32, 16], "64 came later");
    }

    #[test]
    fn a_noted_store_ends_its_predecessor_when_the_note_is_drained() {
        let (clock, word) = (Clock::default(), AtomicU64::new(16));
        let mut history = History::new(16);
        let stored = history.store(&clock, &word, Change::Set(32), |_| Telling::Note).unwrap();
        set(&mut history, &clock, &word, 64, Telling::Direct);
        let later = clock.after_now();
        assert_eq!(during(&history, &word, later, later), [64, 16], "32 is over, 16 is not");
        history.close(stored.serial, clock.tick());
        let later = clock.after_now();
        assert_eq!(during(&history, &word, later, later), [64]);
    }

    #[test]
    fn a_and_d_belong_to_the_version_that_got_them() {
        let (clock, word) = (Clock::default(), AtomicU64::new(P | W));
        let mut history = History::new(P | W);
        word.fetch_or(A, SeqCst);
        assert_eq!(during(&history, &word, 0, 0), [P | W | A]);
        set(&mut history, &clock, &word, P, Telling::Direct);
        assert_eq!(during(&history, &word, 0, clock.now()), [P, P | W | A]);
    }

    #[test]
    fn bits_change_in_one_step() {
        let (clock, word) = (Clock::default(), AtomicU64::new(P | W | A | D));
        let mut history = History::new(P | W | A | D);
        let change = Change::Bits { set: 1 << 9, clear: A | D };
        let stored = history.store(&clock, &word, change, |_| Telling::Direct).unwrap();
        assert_eq!(stored.old, P | W | A | D);
        assert_eq!(word.load(SeqCst), P | W | 1 << 9);
    }

    #[test]
    fn the_mmu_may_set_a_and_d_and_nothing_else() {
        assert_eq!(check(P | W, P | W | A | D), Ok(()));
        assert!(check(0, A).is_err(), "A in an entry that is not present");
        assert!(check(P, P | D).is_err(), "D in an entry that cannot be written");
        assert!(check(P | A, P).is_err(), "A lost");
        assert!(check(P, P | W).is_err());
    }

    #[test]
    fn what_is_forgotten_is_known_to_be() {
        let (clock, word) = (Clock::default(), AtomicU64::new(0));
        let mut history = History::new(0);
        for value in 1..2 * REMEMBERED as u64 {
            set(&mut history, &clock, &word, value << 12, Telling::Direct);
        }
        let mut versions = ArrayVec::new();
        assert!(!history.during(&word, 0, clock.now(), &mut versions));
        assert_eq!(versions.len(), REMEMBERED);
        let after = clock.after_now();
        assert_eq!(during(&history, &word, after, after).len(), 1);
    }
}
