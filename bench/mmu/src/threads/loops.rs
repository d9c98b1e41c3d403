//! Arithmetic on private memory: what the cores can do at best, side by side.

use super::Phased;

/// Words of a thread's memory: it stays in the second-level cache.
const WORDS: usize = 1 << 15;
/// Steps of a phase: some hundred microseconds.
const STEPS: u64 = 100_000;

/// The loop that shares nothing.
#[derive(Clone, Copy, Debug)]
pub struct ParallelLoop;

impl Phased for ParallelLoop {
    type Lane = Vec<u64>;
    const PHASES: usize = 1;

    fn lane(&self, index: usize, _: usize) -> Vec<u64> {
        (0..WORDS as u64).map(|word| word ^ index as u64).collect()
    }

    fn phase(&self, memory: &mut Vec<u64>, _: usize) -> u64 {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..STEPS {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let word = &mut memory[state as usize % WORDS];
            *word = word.wrapping_add(state);
        }
        std::hint::black_box(memory);
        STEPS
    }
}
