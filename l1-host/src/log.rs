//! L1's log, on the second serial port, so that the guest's console stays the guest's. Lines are whole: what
//! other CPUs log comes before or after.
//! May: port-io. Context: any.

use crate::hw::{cpu, serial};
use core::{
    fmt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};
use pv_abi::bundle::REPORT_PREFIX;

/// Nobody reads the log to show the user what is for them: it goes to the console as well.
static ALONE: AtomicBool = AtomicBool::new(false);

/// Writes one line with the time since start.
pub fn line(text: fmt::Arguments<'_>) {
    let micros = crate::boot::since_start(cpu::tsc());
    raw(format_args!("[{:4}.{:06}] {text}", micros / 1_000_000, micros % 1_000_000));
}

/// Writes one line as it is: for lines that the tool looks for.
pub fn raw(text: fmt::Arguments<'_>) {
    serial::LOG.print(format_args!("{text}\n"));
}

/// From here on, what is for the user goes to the console as well.
pub fn report_to_console() {
    ALONE.store(true, Relaxed);
}

/// Writes one line for the user.
pub fn report(text: fmt::Arguments<'_>) {
    raw(format_args!("{REPORT_PREFIX}{text}"));
    if ALONE.load(Relaxed) {
        serial::CONSOLE.print(format_args!("roost: {text}\r\n"));
    }
}

/// Logs a line.
#[macro_export]
macro_rules! log {
    ($($part:tt)*) => { $crate::log::line(format_args!($($part)*)) };
}

/// Tells the tool's user something.
#[macro_export]
macro_rules! report {
    ($($part:tt)*) => { $crate::log::report(format_args!($($part)*)) };
}
