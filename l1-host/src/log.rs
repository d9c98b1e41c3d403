//! L1's log, on the second serial port, so that the guest's console stays the guest's.
//! May: port-io. Context: any.

use crate::hw::{cpu, serial};
use alloc::string::String;
use core::fmt::{self, Write};

struct Line;

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        serial::LOG.write(text.as_bytes());
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
    ($($part:tt)*) => {
        $crate::log::raw(format_args!(
            "{}{}", pv_abi::bundle::REPORT_PREFIX, format_args!($($part)*)
        ))
    };
}
