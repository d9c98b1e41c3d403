//! L1's log, on the second serial port, so that the guest's console stays the guest's.
//! May: port-io. Context: any.

use crate::hw::{cpu, serial};
use alloc::string::String;
use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};
use pv_abi::bundle::REPORT_PREFIX;

/// Nobody reads the log to show the user what is for them: it goes to the console as well.
static ALONE: AtomicBool = AtomicBool::new(false);

struct Line;

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        serial::LOG.write(text.as_bytes());
        Ok(())
    }
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        serial::CONSOLE.write(text.as_bytes());
        Ok(())
    }
}

/// Writes one line with the time since start.
pub fn line(text: fmt::Arguments<'_>) {
    let micros = crate::boot::since_start(cpu::tsc());
    let _ = writeln!(Line, "[{:4}.{:06}] {text}", micros / 1_000_000, micros % 1_000_000);
}

/// Writes one line as it is: for lines that the tool looks for.
pub fn raw(text: fmt::Arguments<'_>) {
    let _ = writeln!(Line, "{text}");
}

/// From here on, what is for the user goes to the console as well.
pub fn report_to_console() {
    ALONE.store(true, Relaxed);
}

/// Writes one line for the user.
pub fn report(text: fmt::Arguments<'_>) {
    raw(format_args!("{REPORT_PREFIX}{text}"));
    if ALONE.load(Relaxed) {
        let _ = write!(Console, "roost: {text}\r\n");
    }
}

/// Writes one line in one go: whatever other CPUs log comes before or after it.
pub fn whole(mut text: String) {
    text.push('\n');
    serial::LOG.write(text.as_bytes());
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
