//! Prints on the machine's UART (DEV-2).
//! May: unsafe, port-io. Context: any. Input: trusted.
#![expect(unsafe_code, reason = "port I/O")]

use core::{
    arch::asm,
    fmt::{self, Write},
};

/// First port of the UART.
pub const UART: u16 = 0x3f8;

/// Writes to the UART.
#[derive(Clone, Copy, Debug)]
pub struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out(UART, byte));
        Ok(())
    }
}

/// Writes a port, which must be the UART's.
pub fn out(port: u16, value: u8) {
    // SAFETY: a port of the UART, which is the guest's; its transmitter is always ready.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}

/// Prints without an end of line.
pub fn print(text: fmt::Arguments<'_>) {
    let _ = Uart.write_fmt(text);
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    () => {
        $crate::println!("")
    };
    ($($part:tt)*) => {
        $crate::native::uart::print(::core::format_args!(
            "{}\n", ::core::format_args!($($part)*)
        ))
    };
}
