//! Ties a process to one CPU.

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// The CPUs that this process may use.
///
/// # Errors
/// The kernel's.
pub fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(SELF)?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect())
}

/// Ties the calling thread, and those that it makes, to the first CPU it may use.
///
/// # Errors
/// The kernel's.
pub fn to_one_cpu() -> Result<usize> {
    let first = *allowed()?.first().context("no CPU may be used")?;
    to(first)?;
    Ok(first)
}

/// Ties the calling thread, and those that it makes, to one CPU.
///
/// # Errors
/// The kernel's.
pub fn to(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(SELF, &set).with_context(|| format!("cannot use CPU {cpu}"))
}
