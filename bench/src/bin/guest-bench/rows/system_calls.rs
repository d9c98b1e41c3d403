//! Measures system calls that do next to nothing, and what stands for them.

use super::Operation;
use crate::sys::{cpu, time};
use linux_guest::vdso::Vdso;

/// The cheapest call.
pub fn getppid() -> Result<Operation, String> {
    Ok(Box::new(|n, watch| watch.time(|| (0..n).for_each(|_| cpu::getppid()))))
}

/// The clock, by system call.
pub fn gettimeofday() -> Result<Operation, String> {
    Ok(Box::new(|n, watch| watch.time(|| (0..n).for_each(|_| time::by_system_call()))))
}

/// The clock, as programs read it: through the C library, which uses the vDSO.
pub fn clock_gettime() -> Result<Operation, String> {
    Ok(Box::new(|n, watch| watch.time(|| (0..n).for_each(|_| time::by_library()))))
}

/// The CPU number.
pub fn getcpu() -> Result<Operation, String> {
    let vdso = Vdso::find().map_err(|error| error.to_string())?.ok_or("no vDSO")?;
    let function = vdso.getcpu().map_err(|error| error.to_string())?;
    Ok(Box::new(move |n, watch| watch.time(|| (0..n).for_each(|_| cpu::number(function)))))
}

/// How long a sleep is too long.
pub fn nanosleep() -> Result<Operation, String> {
    time::wake_punctually();
    Ok(Box::new(|n, watch| {
        watch.time(|| (0..n).for_each(|_| time::sleep()));
        watch.deduct_ns(n * time::SLEEP_NS);
    }))
}
