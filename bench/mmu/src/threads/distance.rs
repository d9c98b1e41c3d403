//! How far apart the first two cores are: the time a cache line takes from one to the other.
//!
//! Hosts move virtual CPUs. Two that share a cache now may sit on two sockets a minute later, and
//! everything that is shared costs several times as much.

use super::Phased;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

/// Turns of each thread in a phase.
const TURNS: u64 = 500;

/// Two threads that take turns. An operation is one turn: the line moves once.
#[derive(Debug, Default)]
pub struct Distance(AtomicU64);

impl Phased for Distance {
    type Lane = u64;
    const PHASES: usize = 1;

    fn lane(&self, index: usize, threads: usize) -> u64 {
        assert!(threads == 2, "two take turns");
        index as u64
    }

    fn phase(&self, index: &mut u64, _: usize) -> u64 {
        for _ in 0..TURNS {
            let turn = loop {
                let turn = self.0.load(Acquire);
                if turn % 2 == *index {
                    break turn;
                }
                std::hint::spin_loop();
            };
            self.0.store(turn + 1, Release);
        }
        TURNS
    }
}
