//! The local APIC's timer, as checks use it.

use crate::{
    abi::{self, tsc, wrmsr},
    clock, interrupts,
};
use pv_abi::msr::{arch, x2apic};

/// The timer's vector.
pub const VECTOR: u8 = 0x40;
/// LVT: no interrupt.
pub const MASKED: u64 = 1 << 16;
/// LVT: fires again and again.
pub const PERIODIC: u64 = 1 << 17;
/// LVT: fires at a TSC value.
pub const DEADLINE: u64 = 2 << 17;
/// Divide configuration: by 1.
pub const BY_ONE: u64 = 0b1011;

/// Puts the timer into `mode`; returns to its reset state what it was.
pub fn set_mode(mode: u64) {
    wrmsr(x2apic::TIMER_INITIAL, 0);
    wrmsr(x2apic::TIMER_DIVIDE, BY_ONE);
    wrmsr(x2apic::LVT_TIMER, mode | u64::from(VECTOR));
}

/// Stops it.
pub fn stop() {
    wrmsr(x2apic::TIMER_INITIAL, 0);
    wrmsr(x2apic::LVT_TIMER, MASKED);
}

/// Arms the deadline timer for `ticks` from now.
pub fn arm(ticks: u64) -> u64 {
    let deadline = tsc() + ticks;
    wrmsr(arch::TSC_DEADLINE, deadline);
    deadline
}

/// Runs `body` in deadline mode, armed for `microseconds` from now; stops the timer after it.
pub fn armed<T>(microseconds: u64, body: impl FnOnce() -> T) -> T {
    set_mode(DEADLINE);
    arm(clock::microseconds(microseconds));
    let result = body();
    stop();
    abi::pvcs().disable_interrupts();
    result
}

/// Waits in supervisor mode until `count` interrupts have been taken, for a second at most.
pub fn wait_for(count: usize) -> bool {
    clock::wait(clock::tsc_hz(), || interrupts::count() >= count)
}

/// Lets `microseconds` pass.
pub fn pass(microseconds: u64) {
    clock::wait(clock::microseconds(microseconds), || false);
}
