//! Arms the interval timer.
#![expect(unsafe_code, reason = "setitimer takes pointers")]

use std::{io, ptr, time::Duration};

/// Sends SIGALRM to this process every `period`; zero stops it.
///
/// # Errors
/// The kernel's.
pub fn alarm_every(period: Duration) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: period.as_secs() as i64,
        tv_usec: i64::from(period.subsec_micros()),
    };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the kernel reads `timer`.
    match unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
