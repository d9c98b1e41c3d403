//! Measures the making and ending of processes.

use super::Operation;
use crate::sys::{
    memory::Region,
    process::{self, Program},
};

/// Pages of 64 MiB.
const LARGE: u64 = 64 << 20 >> 12;

/// A child that ends at once.
pub fn fork_exit() -> Result<Operation, String> {
    Ok(Box::new(|n, watch| watch.time(|| (0..n).for_each(|_| process::fork_and_wait()))))
}

/// The same for a process that has something to copy.
pub fn fork_exit_64m() -> Result<Operation, String> {
    let region = Region::new(LARGE).map_err(|error| error.to_string())?;
    region.touch_all();
    Ok(Box::new(move |n, watch| {
        watch.time(|| (0..n).for_each(|_| process::fork_and_wait()));
        // The region must live until here.
        region.touch_first();
    }))
}

/// A child that becomes a program that ends at once: this one, under another name.
pub fn fork_exec() -> Result<Operation, String> {
    let program = Program::own("true")?;
    Ok(Box::new(move |n, watch| watch.time(|| (0..n).for_each(|_| program.run()))))
}
