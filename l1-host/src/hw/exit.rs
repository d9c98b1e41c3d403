//! Ends the machine.
//! May: unsafe, port-io. Context: any.
#![expect(unsafe_code, reason = "ports that end everything")]

use super::serial;
use crate::report;
use spin::Once;
use x86_64::instructions::{interrupts, port::Port};

/// How ACPI switches a machine off.
#[derive(Clone, Copy, Debug)]
pub struct PowerOff {
    /// The port of a control register (PM1a), and the sleep type of state S5.
    pub first: (u16, u8),
    /// The same for the other control register (PM1b), if there is one.
    pub second: Option<(u16, u8)>,
    /// The port and the value by which firmware is asked to leave these registers to us.
    pub acpi_on: Option<(u16, u8)>,
}

static POWER_OFF: Once<PowerOff> = Once::new();

/// Control register: firmware leaves it to us.
const SCI_ENABLE: u16 = 1 << 0;
/// Control register: where the sleep type is.
const SLEEP_TYPE: u16 = 7 << 10;
/// Control register: go to sleep.
const SLEEP_ENABLE: u16 = 1 << 13;
/// Looks at a register after which nothing is expected of it any more; each takes a microsecond or so.
const PATIENCE: u32 = 1_000_000;

/// Keeps in mind how the machine is switched off.
pub fn remember(power_off: PowerOff) {
    POWER_OFF.call_once(|| power_off);
}

/// Ends with `code` of [`pv_abi::bundle::exit`]: through QEMU's debug-exit device if there is one,
/// else by switching the machine off, else by stopping for good.
pub fn machine(code: u8) -> ! {
    interrupts::disable();
    // SAFETY: nothing of L1 is needed any more; where the device is absent, the write is ignored.
    unsafe { Port::<u8>::new(0xf4).write(code) };
    serial::settle();
    if let Some(power_off) = POWER_OFF.get() {
        // SAFETY: nothing of L1 is needed any more.
        unsafe { power_off.now() };
    }
    report!("the machine has halted and may be switched off");
    loop {
        x86_64::instructions::hlt();
    }
}

impl PowerOff {
    /// Switches off; returns if that did not work.
    ///
    /// # Safety
    /// Nothing that runs is needed any more.
    unsafe fn now(&self) {
        let mut first = Port::<u16>::new(self.first.0);
        // SAFETY: the firmware's tables name these ports and say what the values do; the machine's end
        // is what the caller wants.
        unsafe {
            if let Some((port, value)) = self.acpi_on
                && first.read() & SCI_ENABLE == 0
            {
                Port::<u8>::new(port).write(value);
                let mut looks = 0..PATIENCE;
                while first.read() & SCI_ENABLE == 0 && looks.next().is_some() {}
            }
            for (port, value) in [Some(self.first), self.second].into_iter().flatten() {
                let mut register = Port::<u16>::new(port);
                let others = register.read() & !(SLEEP_TYPE | SLEEP_ENABLE);
                register.write(others | u16::from(value) << 10 & SLEEP_TYPE | SLEEP_ENABLE);
            }
            let mut looks = 0..PATIENCE;
            while looks.next().is_some() {
                first.read();
            }
        }
    }
}
