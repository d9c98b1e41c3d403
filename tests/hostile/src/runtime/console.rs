//! Prints on the machine's UART.
//! May: unsafe, port-io. Context: any. Input: trusted.
#![expect(unsafe_code, reason = "port I/O")]

use core::{
    arch::asm,
    fmt::{self, Write},
};

/// First port of the UART.
const UART: u16 = 0x3f8;
/// Line control: eight bits, no divisor latch.
const LINE: (u16, u8) = (UART + 3, 3);
/// Interrupts: none.
const ENABLE: (u16, u8) = (UART + 1, 0);

/// Writes to the UART.
#[derive(Clone, Copy, Debug)]
pub struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out(UART, byte));
        Ok(())
    }
}

fn out(port: u16, value: u8) {
    // SAFETY: a port of the UART, which is this guest's.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}

/// Takes back what attacks may have done to the UART.
pub fn reset() {
    for (port, value) in [LINE, ENABLE] {
        out(port, value);
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
        $crate::runtime::console::print(format_args!("\n"))
    };
    ($($part:tt)*) => {
        $crate::runtime::console::print(format_args!("{}\n", format_args!($($part)*)))
    };
}
