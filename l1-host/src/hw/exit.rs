//! Ends the machine.
//! May: unsafe, port-io. Context: any.
#![expect(unsafe_code, reason = "ports that end everything")]

use x86_64::instructions::{interrupts, port::Port};

/// Ends with `code` of [`pv_abi::bundle::exit`]: through QEMU's debug-exit device if there is one,
/// else by the fixed ACPI power-off port of QEMU's machines, else by stopping for good.
pub fn machine(code: u8) -> ! {
    interrupts::disable();
    // SAFETY: nothing of L1 is needed any more; absent devices ignore the writes.
    unsafe {
        Port::<u8>::new(0xf4).write(code);
        Port::<u16>::new(0x604).write(0x2000);
    }
    loop {
        x86_64::instructions::hlt();
    }
}
