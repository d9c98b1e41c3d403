//! Prints on COM1.
//! May: unsafe, port-io. Context: any, on the boot CPU.

use super::cpu;
use core::fmt::{self, Write};

/// First port of the UART.
const UART: u16 = 0x3f8;
/// Line status: the transmitter takes a byte.
const READY: u8 = 1 << 5;
/// Looks at the line status before a byte is sent anyhow.
const PATIENCE: u32 = 100_000;

/// The UART.
#[derive(Debug)]
pub struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(send);
        Ok(())
    }
}

fn send(byte: u8) {
    for _ in 0..PATIENCE {
        if cpu::in8(UART + 5) & READY != 0 {
            break;
        }
    }
    cpu::out8(UART, byte);
}

/// Prints without an end of line.
pub fn print(text: fmt::Arguments<'_>) {
    let _ = Uart.write_fmt(text);
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($part:tt)*) => {
        $crate::runtime::console::print(format_args!("{}\n", format_args!($($part)*)))
    };
}
