//! Reads clocks with the precision of the kernel, through the C library or by system call.
#![expect(unsafe_code, reason = "functions of the vDSO and the system call take a pointer")]

use linux_guest::{
    syscall::{checked, syscall2, syscall3},
    vdso::{ClockGettime, Getcpu},
};
use std::{io, ptr};

fn nanoseconds(time: libc::timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

const ZERO: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 0 };

/// `CLOCK_MONOTONIC` in nanoseconds, by system call.
///
/// # Errors
/// The kernel's.
pub fn by_system_call() -> io::Result<u64> {
    let mut time = ZERO;
    let place = (&raw mut time) as u64;
    // SAFETY: the kernel writes `time` only.
    let result = unsafe { syscall2(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC as u64, place) };
    checked(result).map(|_| nanoseconds(time)).map_err(io::Error::from_raw_os_error)
}

/// `CLOCK_MONOTONIC` in nanoseconds, by a function of the vDSO.
///
/// # Errors
/// The function's, as the kernel's error number.
pub fn by_vdso(function: ClockGettime) -> io::Result<u64> {
    let mut time = ZERO;
    // SAFETY: the function writes `time` only.
    match unsafe { function(libc::CLOCK_MONOTONIC, &raw mut time) } {
        0 => Ok(nanoseconds(time)),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// The number of this CPU, by system call.
///
/// # Errors
/// The kernel's.
pub fn cpu_by_system_call() -> io::Result<u32> {
    let mut cpu = 0_u32;
    // SAFETY: the kernel writes `cpu` only.
    let result = unsafe { syscall3(libc::SYS_getcpu, (&raw mut cpu) as u64, 0, 0) };
    checked(result).map(|_| cpu).map_err(io::Error::from_raw_os_error)
}

/// The number of this CPU, by a function of the vDSO.
///
/// # Errors
/// The function's.
pub fn cpu_by_vdso(function: Getcpu) -> io::Result<u32> {
    let mut cpu = 0;
    // SAFETY: the function writes `cpu` only.
    match unsafe { function(&raw mut cpu, ptr::null_mut(), ptr::null_mut()) } {
        0 => Ok(cpu),
        error => Err(io::Error::from_raw_os_error(-error as i32)),
    }
}
