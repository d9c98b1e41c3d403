//! Prints on the machine's UART (DEV-2), which needs no set-up and no feature.
//! May: unsafe, port-io. Context: any. Input: trusted.
#![expect(unsafe_code, reason = "port I/O")]

use core::{
    arch::asm,
    fmt::{self, Write},
};

/// First port of the UART.
const UART: u16 = 0x3f8;

/// Writes to the console. Each byte is an exit to the hypervisor.
#[derive(Clone, Copy, Debug)]
pub struct Console;

impl Console {
    /// Writes one byte.
    pub fn write_byte(self, byte: u8) {
        // SAFETY: the UART sends it; its transmitter is always ready.
        unsafe {
            asm!("out dx, al", in("dx") UART, in("al") byte, options(nomem, nostack, preserves_flags));
        }
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.write_byte(byte));
        Ok(())
    }
}

/// Prints without an end of line.
#[macro_export]
macro_rules! print {
    ($($part:tt)*) => {
        $crate::__private::print(::core::format_args!($($part)*))
    };
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($part:tt)*) => {
        $crate::print!("{}\n", ::core::format_args!($($part)*))
    };
}
