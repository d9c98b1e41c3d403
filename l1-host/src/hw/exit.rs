//! Ends the machine.
//! May: unsafe, port-io. Context: any.
#![expect(unsafe_code, reason = "ports and registers that end everything")]

use super::{physmap::DIRECT_MAP, serial};
use crate::{boot, report};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use pv_abi::bundle::exit::POWEROFF;
use spin::Once;
use x86_64::{
    VirtAddr,
    instructions::{interrupts, port::Port, tables},
    structures::DescriptorTablePointer,
};

/// How ACPI switches a machine off.
#[derive(Clone, Copy, Debug)]
pub enum PowerOff {
    /// By the control registers of any PC.
    Control(Control),
    /// By the sleep control register of one with reduced hardware (ACPI 6.5, section 4.8.3.7), and the sleep type
    /// of state S5.
    Sleep(Register, u8),
}

/// Where a register is.
#[derive(Clone, Copy, Debug)]
pub enum Register {
    /// A port.
    Port(u16),
    /// At this physical address, which L1's root maps.
    Memory(u64),
}

/// The control registers.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// The port of a control register (PM1a), and the sleep type of state S5.
    pub first: (u16, u8),
    /// The same for the other control register (PM1b), if there is one.
    pub second: Option<(u16, u8)>,
    /// The port and the value by which firmware is asked to leave these registers to us.
    pub acpi_on: Option<(u16, u8)>,
}

static POWER_OFF: Once<PowerOff> = Once::new();
/// Whoever made the machine takes a reset for its end.
static ENDS_BY_RESET: AtomicBool = AtomicBool::new(false);
/// Unless its guests have powered off, the machine starts again, by whatever its boot menu has next.
static STARTS_AGAIN: AtomicBool = AtomicBool::new(false);

/// Control register: firmware leaves it to us.
const SCI_ENABLE: u16 = 1 << 0;
/// Control register: where the sleep type is.
const SLEEP_TYPE: u16 = 7 << 10;
/// Control register: go to sleep.
const SLEEP_ENABLE: u16 = 1 << 13;
/// Sleep control register: where the sleep type is, and go to sleep.
const SLEEP_CONTROL: (u8, u8) = (2, 1 << 5);
/// Looks at a register after which nothing is expected of it any more; each takes a microsecond or so.
const PATIENCE: u32 = 1_000_000;

/// Keeps in mind how the machine is switched off.
pub fn remember(power_off: PowerOff) {
    POWER_OFF.call_once(|| power_off);
}

/// If the machine cannot be switched off, it is reset.
pub fn end_by_reset() {
    ENDS_BY_RESET.store(true, Relaxed);
}

/// The machine is reset if it ends otherwise than by guests that power off.
pub fn start_again() {
    STARTS_AGAIN.store(true, Relaxed);
}

/// Ends with `code` of [`pv_abi::bundle::exit`]: through QEMU's debug-exit device if there is one, else by a reset
/// if that was asked for ([`start_again`]), else by switching the machine off, else by a reset if that is an end,
/// else by stopping for good.
pub fn machine(code: u8) -> ! {
    interrupts::disable();
    // SAFETY: nothing of L1 is needed any more; where the device is absent, the write is ignored.
    unsafe { Port::<u8>::new(0xf4).write(code) };
    let starts_again = STARTS_AGAIN.load(Relaxed) && code != POWEROFF;
    if starts_again {
        report!("the machine starts again");
    }
    serial::settle();
    if starts_again {
        // SAFETY: nothing of L1 is needed any more.
        unsafe { reset() };
    }
    if let Some(power_off) = POWER_OFF.get() {
        // SAFETY: nothing of L1 is needed any more.
        unsafe { power_off.now() };
    }
    if ENDS_BY_RESET.load(Relaxed) {
        // SAFETY: nothing of L1 is needed any more.
        unsafe { reset() };
    }
    report!("the machine has halted and may be switched off");
    loop {
        x86_64::instructions::hlt();
    }
}

/// Resets the machine, by the keyboard controller if there is one, else by an exception that nobody can handle.
///
/// # Safety
/// Nothing that runs is needed any more.
unsafe fn reset() -> ! {
    const PULSE_RESET: u8 = 0xfe;
    // SAFETY: the machine's end is what the caller wants.
    unsafe {
        let mut controller = Port::<u8>::new(0x64);
        controller.write(PULSE_RESET);
        for _ in 0..PATIENCE / 100 {
            controller.read();
        }
        tables::lidt(&DescriptorTablePointer { limit: 0, base: VirtAddr::zero() });
    }
    loop {
        interrupts::int3();
    }
}

impl PowerOff {
    /// Where its register in memory is, if it has one: L1's root has to map it.
    #[must_use]
    pub const fn in_memory(&self) -> Option<u64> {
        match self {
            Self::Sleep(Register::Memory(address), _) => Some(*address),
            _ => None,
        }
    }

    /// Switches off; returns if that did not work.
    ///
    /// # Safety
    /// Nothing that runs is needed any more.
    unsafe fn now(&self) {
        // SAFETY: the machine's end is what the caller wants.
        unsafe {
            match self {
                Self::Control(control) => control.off(),
                Self::Sleep(register, kind) => register.sleep(*kind),
            }
        }
    }
}

impl Register {
    /// Has the machine go to sleep as `kind` says; returns if that did not work.
    ///
    /// # Safety
    /// As for [`PowerOff::now`]. This is the sleep control register.
    unsafe fn sleep(self, kind: u8) {
        let (shift, enable) = SLEEP_CONTROL;
        let value = kind << shift | enable;
        // SAFETY: 1. The firmware's tables name this register, and the machine's end is what the caller wants.
        // 2. L1's root, which is there when the first CPU is up, maps it.
        unsafe {
            match self {
                Self::Port(port) => Port::<u8>::new(port).write(value),
                Self::Memory(address) if boot::cpu(0).is_some() => {
                    ((DIRECT_MAP + address) as *mut u8).write_volatile(value);
                }
                Self::Memory(_) => {}
            }
        }
    }
}

impl Control {
    /// Switches off; returns if that did not work.
    ///
    /// # Safety
    /// Nothing that runs is needed any more.
    unsafe fn off(&self) {
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
