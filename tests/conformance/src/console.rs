//! Prints on the machine's UART.
#![expect(unsafe_code, reason = "port I/O")]

use core::fmt::{self, Write};
use x86_64::instructions::port::Port;

/// First port of the UART.
pub const UART: u16 = 0x3f8;

/// Writes to the UART.
pub struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the UART is ours; its transmitter is always ready.
            unsafe { Port::<u8>::new(UART).write(byte) };
        }
        Ok(())
    }
}

/// Prints without an end of line.
pub fn print(text: fmt::Arguments<'_>) {
    let _ = Uart.write_fmt(text);
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($part:tt)*) => {
        $crate::console::print(format_args!("{}\n", format_args!($($part)*)))
    };
}
