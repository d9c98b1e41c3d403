//! Drives this CPU's local APIC: one-shot timer, interrupts to other CPUs.
//! May: unsafe. Context: any.
#![expect(unsafe_code, reason = "device memory")]

use super::{cpu, idt};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

const BASE: u64 = 0xfee0_0000;

/// Offsets of registers.
mod register {
    pub const ID: u64 = 0x20;
    pub const EOI: u64 = 0xb0;
    pub const SPURIOUS: u64 = 0xf0;
    pub const IN_SERVICE: u64 = 0x100;
    pub const COMMAND: u64 = 0x300;
    pub const COMMAND_HIGH: u64 = 0x310;
    pub const TIMER: u64 = 0x320;
    pub const LINT0: u64 = 0x350;
    pub const INITIAL: u64 = 0x380;
    pub const CURRENT: u64 = 0x390;
    pub const DIVIDE: u64 = 0x3e0;
}

const ENABLE: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
/// Divide by one.
const DIVIDE_BY_1: u32 = 0b1011;

/// Timer ticks in 2^20 TSC ticks.
static RATE: AtomicU64 = AtomicU64::new(0);

fn read(register: u64) -> u32 {
    // SAFETY: the local APIC is mapped, at its fixed address.
    unsafe { ((BASE + register) as *const u32).read_volatile() }
}

fn write(register: u64, value: u32) {
    // SAFETY: as in `read`; no vector is used that has no handler.
    unsafe { ((BASE + register) as *mut u32).write_volatile(value) }
}

/// Enables this CPU's APIC, with the timer off and the old controllers shut out.
pub fn init() {
    // The old controllers would raise vectors that are exceptions.
    cpu::out8(0x21, 0xff);
    cpu::out8(0xa1, 0xff);
    write(register::SPURIOUS, ENABLE | u32::from(idt::SPURIOUS));
    write(register::LINT0, MASKED);
    write(register::TIMER, MASKED | u32::from(idt::TIMER));
    write(register::DIVIDE, DIVIDE_BY_1);
}

/// Measures the timer's rate over about 2^20 TSC ticks.
pub fn measure_rate() {
    write(register::TIMER, MASKED | u32::from(idt::TIMER));
    write(register::INITIAL, u32::MAX);
    let start = cpu::tsc();
    let mut ticks = 0;
    while ticks < 1 << 20 {
        ticks = cpu::tsc() - start;
    }
    let passed = u64::from(u32::MAX - read(register::CURRENT));
    write(register::INITIAL, 0);
    RATE.store(((passed << 20) / ticks).max(1), SeqCst);
}

/// Fires the timer's interrupt once, `ticks` of the TSC from now.
pub fn fire_in(ticks: u64) {
    let count = (ticks.min(1 << 40) * RATE.load(SeqCst)) >> 20;
    write(register::TIMER, idt::TIMER.into());
    write(register::INITIAL, u32::try_from(count.max(1)).unwrap_or(u32::MAX));
}

/// Stops the timer.
pub fn stop_timer() {
    write(register::INITIAL, 0);
}

/// Says that an interrupt was handled.
pub fn end_of_interrupt() {
    write(register::EOI, 0);
}

/// Says that every interrupt that is in service was handled.
pub fn end_all_interrupts() {
    while (0..8).any(|word| read(register::IN_SERVICE + 0x10 * word) != 0) {
        end_of_interrupt();
    }
}

/// This CPU's APIC id.
pub fn id() -> u32 {
    read(register::ID) >> 24
}

/// Sends the interrupt command `low` to the CPU with APIC id `to`.
pub fn send(to: u32, low: u32) {
    write(register::COMMAND_HIGH, to << 24);
    write(register::COMMAND, low);
}
