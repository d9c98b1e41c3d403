//! Wraps what the rows need and safe Rust cannot say. Loops that are measured make their system
//! calls directly, so that no library's code is measured with them.

pub mod counters;
pub mod cpu;
pub mod file;
pub mod memory;
pub mod pair;
pub mod process;
pub mod signal;
pub mod time;
pub mod two;

use linux_guest::syscall::checked;
use std::io;

/// The result of a system call, as the standard library has it.
fn result(raw: i64) -> io::Result<u64> {
    checked(raw).map_err(io::Error::from_raw_os_error)
}
