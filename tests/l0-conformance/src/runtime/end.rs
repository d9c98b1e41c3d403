//! Ends the machine.
//! May: port-io. Context: any.

use super::cpu;

/// How the run ended, as the debug-exit device says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All checks passed or were skipped.
    Passed = 0x10,
    /// Some failed, or the run broke off.
    Failed = 0x14,
}

/// Ends: through the debug-exit device if there is one, else by the fixed ACPI power-off port of
/// QEMU's machines, else by stopping for good.
pub fn machine(end: End) -> ! {
    x86_64::instructions::interrupts::disable();
    cpu::out8(0xf4, end as u8);
    cpu::out16(0x604, 0x2000);
    loop {
        x86_64::instructions::hlt();
    }
}
