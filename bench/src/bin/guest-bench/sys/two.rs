//! Lets two CPUs work at the same time.

use super::{
    cpu::{self, Moment},
    memory::Region,
    process::{self, Ended, give_up, shared_words},
};
use core::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};
use std::thread;

/// What works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two threads of one process.
    Threads,
    /// Two processes.
    Processes,
}

/// Words that the workers share: for each start and end by both clocks, then how many are ready.
const WORDS_EACH: usize = 4;
const READY: usize = 2 * WORDS_EACH;

/// Two workers on two CPUs each touch `pages` pages of their own for the first time. Returns ticks
/// and nanoseconds from the first start to the last end.
pub fn touch_together(kind: Kind, pages: u64) -> (u64, u64) {
    let Ok(words) = shared_words() else { give_up("out of memory") };
    match kind {
        Kind::Threads => thread::scope(|scope| {
            for worker in 0..2 {
                scope.spawn(move || touch(words, worker, pages));
            }
        }),
        Kind::Processes => {
            let workers = [0, 1].map(|worker| {
                process::start(|| {
                    touch(words, worker, pages);
                    0
                })
            });
            for worker in workers {
                if !matches!(worker.map(process::wait), Ok(Ended::Exited(0))) {
                    give_up("a worker failed");
                }
            }
        }
    }
    let span = |clock: usize| {
        let at =
            |worker: usize, edge: usize| words[worker * WORDS_EACH + clock + edge].load(SeqCst);
        at(0, 2).max(at(1, 2)) - at(0, 0).min(at(1, 0))
    };
    (span(0), span(1))
}

fn touch(words: &[AtomicU64], worker: usize, pages: u64) {
    let (Ok(()), Ok(region)) = (cpu::pin(worker), Region::new(pages)) else {
        give_up("a worker cannot start");
    };
    words[READY].fetch_add(1, SeqCst);
    while words[READY].load(SeqCst) < 2 {
        spin_loop();
    }
    let start = Moment::now();
    region.touch_all();
    let (tsc, ns) = start.until_now();
    let edges = [start.tsc, start.monotonic, start.tsc + tsc, start.monotonic + ns];
    for (word, edge) in words[worker * WORDS_EACH..].iter().zip(edges) {
        word.store(edge, SeqCst);
    }
}

/// Runs `body` while a thread of this process keeps CPU 1 busy.
pub fn beside_a_busy_thread(body: impl FnOnce()) {
    let (running, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            if cpu::pin(1).is_err() {
                give_up("cannot use CPU 1");
            }
            running.store(true, SeqCst);
            while !stop.load(SeqCst) {
                spin_loop();
            }
        });
        while !running.load(SeqCst) {
            thread::yield_now();
        }
        body();
        stop.store(true, SeqCst);
    });
}
