//! Run queues: what is ready to run, by CPU, and which CPUs have nothing to do.
//! May: nothing. Context: irq-off.
//!
//! A CPU that is about to halt says so and then looks at the queues; who queues something looks at who
//! said so afterwards. One of the two sees the other.

use alloc::collections::VecDeque;
use core::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use spin::Mutex;
use switcher::layout::MAX_CPUS;

const _: () = assert!(MAX_CPUS <= 64, "the idle CPUs are bits of a word");

/// The queues of all CPUs. `T` owns what is to run.
#[derive(Debug)]
pub struct Queues<T> {
    queues: [Mutex<VecDeque<T>>; MAX_CPUS],
    lengths: [AtomicUsize; MAX_CPUS],
    idle: AtomicU64,
    /// CPUs that take part.
    online: AtomicU64,
}

impl<T> Queues<T> {
    /// Empty queues, and no idle CPU.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            queues: [const { Mutex::new(VecDeque::new()) }; MAX_CPUS],
            lengths: [const { AtomicUsize::new(0) }; MAX_CPUS],
            idle: AtomicU64::new(0),
            online: AtomicU64::new(0),
        }
    }

    /// `cpu` takes part from now on.
    pub fn join(&self, cpu: usize) {
        self.online.fetch_or(1 << cpu, SeqCst);
    }

    /// Queues `item` on `cpu`, last.
    pub fn push(&self, cpu: usize, item: T) {
        let mut queue = self.queues[cpu].lock();
        queue.push_back(item);
        self.lengths[cpu].store(queue.len(), SeqCst);
    }

    /// What `cpu` is to run next: of its own queue, or else of the longest.
    pub fn pop(&self, cpu: usize) -> Option<T> {
        self.take_first(cpu, |_| true).or_else(|| self.take_first(self.longest()?, |_| true))
    }

    /// The first that `cpu` may run: of its own queue, or else of any.
    pub fn pop_that(&self, cpu: usize, may_run: impl Fn(&T) -> bool) -> Option<T> {
        let others = (0..MAX_CPUS).filter(|&other| other != cpu);
        core::iter::once(cpu).chain(others).find_map(|cpu| self.take_first(cpu, &may_run))
    }

    /// Takes the first of the queue of `cpu` that `wanted` accepts.
    fn take_first(&self, cpu: usize, wanted: impl Fn(&T) -> bool) -> Option<T> {
        if self.lengths[cpu].load(SeqCst) == 0 {
            return None;
        }
        let mut queue = self.queues[cpu].lock();
        let place = queue.iter().position(wanted)?;
        let item = queue.remove(place);
        self.lengths[cpu].store(queue.len(), SeqCst);
        item
    }

    fn longest(&self) -> Option<usize> {
        let longest = (0..MAX_CPUS).max_by_key(|&cpu| self.lengths[cpu].load(Relaxed))?;
        (self.lengths[longest].load(SeqCst) != 0).then_some(longest)
    }

    /// Something waits for `cpu` itself.
    #[inline]
    pub fn is_wanted(&self, cpu: usize) -> bool {
        self.lengths[cpu].load(Relaxed) != 0
    }

    /// Something waits somewhere.
    pub fn any(&self) -> bool {
        self.lengths.iter().any(|length| length.load(SeqCst) != 0)
    }

    /// `cpu` is about to halt, and looks once more whether there is something to run.
    pub fn say_idle(&self, cpu: usize) {
        self.idle.fetch_or(1 << cpu, SeqCst);
    }

    /// `cpu` is about to halt; false if it must not, for there is something to run.
    #[must_use]
    pub fn begin_idle(&self, cpu: usize) -> bool {
        self.say_idle(cpu);
        let nothing = !self.any();
        if !nothing {
            self.end_idle(cpu);
        }
        nothing
    }

    /// `cpu` runs on.
    pub fn end_idle(&self, cpu: usize) {
        self.idle.fetch_and(!(1 << cpu), SeqCst);
    }

    /// True if `cpu` has said that it halts.
    pub fn is_idle(&self, cpu: usize) -> bool {
        self.idle.load(SeqCst) & 1 << cpu != 0
    }

    /// Where to queue what ran on `last` before: there, unless that is busy and another CPU is idle, or
    /// by two busier than another.
    #[must_use]
    pub fn place(&self, last: usize) -> usize {
        let idle = self.idle.load(SeqCst);
        if idle != 0 {
            return if idle & 1 << last != 0 { last } else { idle.trailing_zeros() as usize };
        }
        let length = |cpu: usize| self.lengths[cpu].load(Relaxed);
        let online = self.online.load(Relaxed);
        let others = (0..MAX_CPUS).filter(|cpu| online & 1 << cpu != 0);
        let shortest = others.min_by_key(|&cpu| length(cpu)).unwrap_or(last);
        if length(last) >= length(shortest) + 2 { shortest } else { last }
    }
}

impl<T> Default for Queues<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::atomic::AtomicBool, thread, time::Duration};

    #[test]
    fn a_queue_is_first_in_first_out_and_others_help() {
        let queues = Queues::new();
        queues.push(0, 'a');
        queues.push(0, 'b');
        queues.push(1, 'c');
        assert_eq!(
            (queues.pop(0), queues.pop(2), queues.pop(2)),
            (Some('a'), Some('c'), Some('b'))
        );
        assert_eq!(queues.pop(0), None);
    }

    #[test]
    fn who_may_not_run_is_passed_over() {
        let queues = Queues::new();
        for (cpu, item) in [(0, 'a'), (0, 'b'), (1, 'c')] {
            queues.push(cpu, item);
        }
        let pop = |cpu, not| queues.pop_that(cpu, |&item| item != not);
        assert_eq!((pop(0, 'a'), pop(0, 'a'), pop(0, 'a')), (Some('b'), Some('c'), None));
        assert!(queues.any());
        assert_eq!((pop(1, 'b'), queues.any()), (Some('a'), false));
    }

    #[test]
    fn what_wakes_goes_where_it_was_or_where_nothing_runs() {
        let queues = Queues::<()>::new();
        assert_eq!(queues.place(3), 3, "nobody is idle");
        assert!(queues.begin_idle(1));
        assert_eq!(queues.place(3), 1);
        assert!(queues.begin_idle(3));
        assert_eq!(queues.place(3), 3);
        queues.push(1, ());
        assert!(!queues.begin_idle(5), "there is something to run");
        assert!(!queues.is_idle(5));
    }

    #[test]
    fn queues_stay_about_as_long_as_each_other() {
        let queues = Queues::new();
        for cpu in [0, 3] {
            queues.join(cpu);
        }
        for _ in 0..10 {
            queues.push(queues.place(0), ());
        }
        let lengths = [0, 3].map(|cpu: usize| queues.lengths[cpu].load(Relaxed));
        assert_eq!(lengths, [6, 4]);
    }

    /// Each item that is queued is run though every CPU halts whenever it can.
    #[test]
    fn no_wake_up_is_lost() {
        const CPUS: usize = 3;
        const ITEMS: usize = 20_000;
        let queues = Queues::new();
        let kicks = [const { AtomicBool::new(false) }; CPUS];
        let done = AtomicUsize::new(0);
        thread::scope(|scope| {
            for cpu in 0..CPUS {
                let (queues, kicks, done) = (&queues, &kicks, &done);
                scope.spawn(move || {
                    while done.load(SeqCst) < ITEMS {
                        if queues.pop(cpu).is_some() {
                            done.fetch_add(1, SeqCst);
                        } else if queues.begin_idle(cpu) {
                            // Halted: only a kick ends it.
                            while !kicks[cpu].swap(false, SeqCst) && done.load(SeqCst) < ITEMS {
                                thread::yield_now();
                            }
                            queues.end_idle(cpu);
                        }
                    }
                });
            }
            for item in 0..ITEMS {
                let cpu = queues.place(item % CPUS);
                queues.push(cpu, item);
                if queues.is_idle(cpu) {
                    kicks[cpu].store(true, SeqCst);
                }
            }
            let start = std::time::Instant::now();
            while done.load(SeqCst) < ITEMS {
                assert!(start.elapsed() < Duration::from_secs(60), "a wake-up was lost");
                thread::yield_now();
            }
        });
    }
}
