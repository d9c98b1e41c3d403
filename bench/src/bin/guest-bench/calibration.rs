//! Compares the clocks with a known number of instructions.

use crate::{
    facts::fact,
    sys::cpu::{Moment, two_million_instructions},
};

/// Tries; the smallest reading has no interrupt in it.
const TRIES: usize = 7;

/// Prints what 2,000,000 instructions take. Where a TSC tick is one instruction the reading is
/// [`bench_report::lines::CALIBRATION`].
pub fn print() {
    let readings = (0..TRIES).map(|_| {
        let start = Moment::now();
        let tsc = two_million_instructions();
        (tsc, Moment::now().monotonic - start.monotonic)
    });
    let (tsc, ns) = readings
        .fold((u64::MAX, u64::MAX), |best, reading| (best.0.min(reading.0), best.1.min(reading.1)));
    fact("calib_2M_insns_tsc", &tsc.to_string());
    fact("calib_2M_insns_ns", &ns.to_string());
}
