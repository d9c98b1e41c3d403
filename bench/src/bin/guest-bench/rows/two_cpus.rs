//! Measures what two CPUs do to each other.

use super::{Operation, memory::flip};
use crate::sys::{
    cpu,
    memory::Region,
    two::{self, Kind},
};

/// Pages for each worker between two meetings, at most.
const STORM: u64 = 4096;

/// Faults of two threads in one address space.
pub fn first_touch_threads() -> Result<Operation, String> {
    first_touch(Kind::Threads)
}

/// Faults in two address spaces.
pub fn first_touch_processes() -> Result<Operation, String> {
    first_touch(Kind::Processes)
}

fn first_touch(kind: Kind) -> Result<Operation, String> {
    cpu::demand_two()?;
    Ok(Box::new(move |n, watch| {
        // An odd operation more or less.
        let mut left = n.div_ceil(2);
        while left > 0 {
            let pages = left.min(STORM);
            watch.add(two::touch_together(kind, pages));
            left -= pages;
        }
    }))
}

/// Changes that the other CPU must be told of, since it runs in the same address space.
pub fn shootdown() -> Result<Operation, String> {
    cpu::demand_two()?;
    let region = Region::new(1).map_err(|error| error.to_string())?;
    region.touch_first();
    Ok(Box::new(move |n, watch| {
        two::beside_a_busy_thread(|| watch.time(|| flip(&region, n)));
    }))
}
