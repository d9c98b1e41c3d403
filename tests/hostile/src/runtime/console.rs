//! Takes back what attacks may have done to the console.
//! May: port-io. Context: any. Input: trusted.

use suite::native::uart::{UART, out};

/// Line control: eight bits, no divisor latch.
const LINE: (u16, u8) = (UART + 3, 3);
/// Interrupts: none.
const ENABLE: (u16, u8) = (UART + 1, 0);

/// Makes the UART what it was.
pub fn reset() {
    for (port, value) in [LINE, ENABLE] {
        out(port, value);
    }
}
