//! Runs the same work on one thread and on several, and times the phases they go through together.
//!
//! Threads are pinned, one to a core, and meet at a spinning barrier before each phase. The time of
//! a phase is from the first thread's start to the last one's end.

mod distance;
mod idle;
mod loops;
mod processes;
mod work;

pub use distance::Distance;
pub use idle::{Busy, Idle};
pub use loops::ParallelLoop;
pub use processes::NewTables;
pub use work::{Flushes, Frames, Sharing, Work};

use rustix::thread::{CpuSet, sched_setaffinity};
use spin::Barrier;
use std::time::{Duration, Instant};

/// Work that is done in phases, by one thread or by several at once.
pub trait Phased: Sync {
    /// What a thread keeps between phases.
    type Lane;
    /// Phases of a round, each timed by itself.
    const PHASES: usize;

    /// The state of thread `index` of `threads`.
    fn lane(&self, index: usize, threads: usize) -> Self::Lane;

    /// Does phase `phase`; returns how many operations it had.
    fn phase(&self, lane: &mut Self::Lane, phase: usize) -> u64;

    /// Puts things back after a round, untimed. Called by every thread.
    fn restore(&self, lane: &mut Self::Lane) {
        let _ = lane;
    }

    /// The thread is done.
    fn end(&self, lane: Self::Lane) {
        let _ = lane;
    }
}

/// Work whose type is forgotten.
pub trait Rounds {
    /// Operations per second in each phase of each round: `[phase][round]`.
    fn rates(&self, threads: usize, rounds: usize) -> Vec<Vec<f64>>;
}

impl<W: Phased> Rounds for W {
    fn rates(&self, threads: usize, rounds: usize) -> Vec<Vec<f64>> {
        let barrier = Barrier::new(threads);
        let logs: Vec<Vec<Span>> = std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads)
                .map(|index| {
                    let (work, barrier) = (self, &barrier);
                    scope.spawn(move || run(work, barrier, index, threads, rounds))
                })
                .collect();
            started.into_iter().map(|thread| thread.join().expect("a thread measures")).collect()
        });
        let rate = |place: usize| {
            let spans = logs.iter().map(|log| log[place]);
            let operations: u64 = spans.clone().map(|span| span.operations).sum();
            let first = spans.clone().map(|span| span.start).min().expect("at least one thread");
            let last = spans.map(|span| span.end).max().expect("at least one thread");
            operations as f64 / (last - first).max(Duration::from_nanos(1)).as_secs_f64()
        };
        (0..W::PHASES)
            .map(|phase| (1..=rounds).map(|round| rate(round * W::PHASES + phase)).collect())
            .collect()
    }
}

/// One thread's part in one phase.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: Instant,
    end: Instant,
    operations: u64,
}

/// All rounds of one thread; the first warms up.
fn run<W: Phased>(
    work: &W,
    barrier: &Barrier,
    index: usize,
    threads: usize,
    rounds: usize,
) -> Vec<Span> {
    pin(index);
    let mut lane = work.lane(index, threads);
    let mut log = Vec::with_capacity((rounds + 1) * W::PHASES);
    for _ in 0..=rounds {
        for phase in 0..W::PHASES {
            barrier.wait();
            let start = Instant::now();
            let operations = work.phase(&mut lane, phase);
            log.push(Span { start, end: Instant::now(), operations });
        }
        barrier.wait();
        work.restore(&mut lane);
    }
    barrier.wait();
    work.end(lane);
    log
}

/// Keeps this thread on core `index`. Where that is not permitted the scheduler decides.
fn pin(index: usize) {
    let mut set = CpuSet::new();
    set.set(index);
    let _ = sched_setaffinity(None, &set);
}
