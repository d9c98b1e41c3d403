//! Prints on COM2, where L1's log goes.
//! May: unsafe, port-io. Context: any; one processor at a time.
#![expect(unsafe_code, reason = "ports")]

use core::fmt::{self, Write};
use x86_64::instructions::port::Port;

/// First port of the UART.
const UART: u16 = 0x2f8;
/// Line status: the transmitter takes a byte.
const READY: u8 = 1 << 5;

/// The UART.
#[derive(Debug)]
pub struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the UART's registers reach no memory.
            unsafe {
                while Port::<u8>::new(UART + 5).read() & READY == 0 {}
                Port::new(UART).write(byte);
            }
        }
        Ok(())
    }
}

/// Prints a line.
macro_rules! println {
    ($($part:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::console::Uart, $($part)*);
    }};
}
pub(crate) use println;
