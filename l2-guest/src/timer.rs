//! Sets the local APIC's timer by the time-stamp counter (DEV-5).
//! May: unsafe, msr. Context: any. Input: trusted.
#![expect(unsafe_code, reason = "the local APIC's registers and RDTSC")]

use crate::hypercall;
use pv_abi::msr::{arch, x2apic};

/// LVT: fires at a value of the TSC.
const DEADLINE: u64 = 2 << 17;
/// LVT: no interrupt.
const MASKED: u64 = 1 << 16;

/// The time-stamp counter; [`crate::boot::Boot::tsc_hz`] is its rate.
#[must_use]
pub fn now() -> u64 {
    // SAFETY: it has no effect but its result.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Interrupts once, at TSC value `deadline`, by `vector`. Replaces what was set before.
///
/// # Panics
/// The vector is one of an exception.
pub fn set(vector: u8, deadline: u64) {
    assert!(vector >= 32, "vector {vector} is an exception's");
    write(x2apic::LVT_TIMER, DEADLINE | u64::from(vector));
    write(arch::TSC_DEADLINE, deadline);
}

/// Stops the timer.
pub fn stop() {
    write(x2apic::LVT_TIMER, MASKED);
}

fn write(index: u32, value: u64) {
    // SAFETY: the timer changes no memory.
    unsafe { hypercall::wrmsr(index, value) }.expect("the local APIC has this register");
}
