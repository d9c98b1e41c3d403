//! Measures how fast two processes wake each other.

use super::Operation;
use crate::sys::{
    cpu,
    pair::{FutexPair, PipePair},
};

/// Two switches on one CPU.
pub fn pipe() -> Result<Operation, String> {
    pipes_to(0)
}

/// Wake-ups between two CPUs.
pub fn pipe_two_cpus() -> Result<Operation, String> {
    cpu::demand_two()?;
    pipes_to(1)
}

fn pipes_to(partner: usize) -> Result<Operation, String> {
    let mut pair = PipePair::new(partner).map_err(|error| error.to_string())?;
    Ok(Box::new(move |n, watch| watch.time(|| (0..n).for_each(|_| pair.round_trip()))))
}

/// The same without data.
pub fn futex() -> Result<Operation, String> {
    let pair = FutexPair::new(0).map_err(|error| error.to_string())?;
    Ok(Box::new(move |n, watch| watch.time(|| (0..n).for_each(|_| pair.round_trip()))))
}
