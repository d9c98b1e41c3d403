//! Reads clocks and sleeps.
#![expect(unsafe_code, reason = "system calls that take pointers")]

use linux_guest::syscall::syscall2;

/// What [`sleep`] asks for.
pub const SLEEP_NS: u64 = 100_000;

/// A clock in nanoseconds, through the C library.
#[inline(always)]
pub fn clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes `time`; the clocks used here always exist.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The clock, read and thrown away.
#[inline(always)]
pub fn by_library() {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes `time`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
}

/// The wall clock by system call, read and thrown away.
#[inline(always)]
pub fn by_system_call() {
    let mut time = [0_u64; 2];
    // SAFETY: the kernel writes `time`.
    unsafe { syscall2(libc::SYS_gettimeofday, time.as_mut_ptr() as u64, 0) };
}

/// Asks the kernel not to delay the end of sleeps.
pub fn wake_punctually() {
    // SAFETY: sets a number of this thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// Sleeps for [`SLEEP_NS`].
pub fn sleep() {
    let time = [0, SLEEP_NS];
    // SAFETY: the kernel reads `time`.
    unsafe { syscall2(libc::SYS_nanosleep, time.as_ptr() as u64, 0) };
}
