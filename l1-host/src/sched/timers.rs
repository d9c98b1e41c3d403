//! Deadlines of what is parked, by CPU.
//! May: nothing. Context: irq-off.

use alloc::{collections::BinaryHeap, vec::Vec};
use core::cmp::{Ordering, Reverse};

#[derive(Debug)]
struct Entry<T> {
    deadline: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.deadline == other.deadline
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.deadline.cmp(&other.deadline)
    }
}

/// Deadlines in ticks of the TSC, and what each is for.
#[derive(Debug)]
pub struct Timers<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
}

impl<T> Timers<T> {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    /// Adds one.
    pub fn add(&mut self, deadline: u64, what: T) {
        self.heap.push(Reverse(Entry { deadline, what }));
    }

    /// The next.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(entry)| entry.deadline)
    }

    /// Takes those that are due at `now`.
    #[must_use]
    pub fn take_due(&mut self, now: u64) -> Vec<T> {
        let mut due = Vec::new();
        while self.next().is_some_and(|deadline| deadline <= now)
            && let Some(Reverse(entry)) = self.heap.pop()
        {
            due.push(entry.what);
        }
        due
    }
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_their_order() {
        let mut timers = Timers::new();
        for (deadline, name) in [(30, 'c'), (10, 'a'), (20, 'b'), (10, 'A')] {
            timers.add(deadline, name);
        }
        assert_eq!(timers.next(), Some(10));
        assert_eq!(timers.take_due(9), []);
        let mut first = timers.take_due(19);
        first.sort_unstable();
        assert_eq!(first, ['A', 'a']);
        assert_eq!((timers.take_due(100), timers.next()), (vec!['b', 'c'], None));
    }
}
