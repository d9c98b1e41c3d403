//! Time as the guest knows it.

use crate::abi::tsc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

static TSC_HZ: AtomicU64 = AtomicU64::new(0);

/// Takes note of the rate that L1 states.
pub fn init(tsc_hz: u64) {
    TSC_HZ.store(tsc_hz, Relaxed);
}

/// TSC ticks per second.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Relaxed)
}

/// Ticks in `count` microseconds.
pub fn microseconds(count: u64) -> u64 {
    tsc_hz() / 1_000_000 * count
}

/// Waits, without leaving the CPU, until `ready` or for `limit` ticks; true if it was ready.
pub fn wait(limit: u64, mut ready: impl FnMut() -> bool) -> bool {
    let start = tsc();
    loop {
        if ready() {
            return true;
        }
        if tsc().wrapping_sub(start) > limit {
            return false;
        }
        core::hint::spin_loop();
    }
}
