//! Interrupts that the guest has taken, in their order.

use crate::abi;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Relaxed};
use pv_abi::msr::x2apic;

const DEPTH: usize = 64;
static TAKEN: [AtomicU8; DEPTH] = [const { AtomicU8::new(0) }; DEPTH];
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Handlers end the interrupt.
static ENDS: AtomicBool = AtomicBool::new(true);

/// Notes an interrupt and ends it.
pub fn handle(vector: u8) {
    TAKEN[COUNT.fetch_add(1, Relaxed) % DEPTH].store(vector, Relaxed);
    if ENDS.load(Relaxed) {
        abi::wrmsr(x2apic::EOI, 0);
    }
}

/// Interrupts so far.
pub fn count() -> usize {
    COUNT.load(Relaxed)
}

/// The vector of interrupt number `number`, one of the last 64; 0 if it has not come.
pub fn vector(number: usize) -> u64 {
    if number < count() { TAKEN[number % DEPTH].load(Relaxed).into() } else { 0 }
}

/// Runs `body` with handlers that leave the end of interrupt to it.
pub fn without_eoi<T>(body: impl FnOnce() -> T) -> T {
    ENDS.store(false, Relaxed);
    let result = body();
    ENDS.store(true, Relaxed);
    result
}
