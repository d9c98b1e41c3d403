//! Tells time in ticks of the TSC.
//! May: nothing. Context: any.

use super::cpu;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Ticks in a second / 1000. Until L0 says the rate, a guess that is high enough for delays.
static KHZ: AtomicU64 = AtomicU64::new(4_000_000);

/// Sets the rate.
pub fn init(khz: u32) {
    KHZ.store(khz.max(1).into(), Relaxed);
}

/// Ticks of so many microseconds, at least 1.
pub fn microseconds(count: u64) -> u64 {
    (count * KHZ.load(Relaxed) / 1000).max(1)
}

/// Microseconds of so many ticks.
pub fn to_microseconds(ticks: u64) -> u64 {
    ticks * 1000 / KHZ.load(Relaxed)
}

/// The TSC in so many microseconds.
pub fn after(count: u64) -> u64 {
    cpu::tsc() + microseconds(count)
}

/// Waits so many microseconds. Not in HLT: an emulated CPU with SVM loses one timer interrupt of a
/// guest in ten thousand.
pub fn nap(count: u64) {
    let end = after(count);
    while cpu::tsc() < end {
        core::hint::spin_loop();
    }
}
