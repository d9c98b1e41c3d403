//! Tells how often guests were left while they run, every so often.
//! May: port-io, alloc. Context: run-loop.
//!
//! Nothing is set up to happen at that time: whichever CPU sees that it is time does it. Counters that
//! nobody looks at for want of an exit have not changed either.

use crate::{boot, guests, hw::clock::Clock, log, stats::Counts};
use alloc::string::String;
use core::{
    fmt::Write,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Relaxed},
    },
};
use pv_abi::bundle;

/// It never is time.
const NEVER: u64 = u64::MAX;
/// When the next line is due, as a TSC value.
static DUE: AtomicU64 = AtomicU64::new(NEVER);
/// From one line to the next, in ticks.
static PERIOD: AtomicU64 = AtomicU64::new(0);

/// Begins, with a line every `seconds` if that is not 0.
pub fn begin(seconds: u32, clock: &Clock, now: u64) {
    if seconds != 0 {
        let period = clock.tsc_hz.saturating_mul(seconds.into());
        PERIOD.store(period, Relaxed);
        DUE.store(now.saturating_add(period).min(NEVER - 1), Relaxed);
    }
}

/// Somebody wants to know.
#[inline]
pub fn is_on() -> bool {
    DUE.load(Relaxed) != NEVER
}

/// Writes the line if it is time for it.
#[inline]
pub fn tell_if_due(now: u64) {
    let due = DUE.load(Relaxed);
    if now >= due {
        let next = now.saturating_add(PERIOD.load(Relaxed)).min(NEVER - 1);
        // One CPU does it.
        if DUE.compare_exchange(due, next, AcqRel, Relaxed).is_ok() {
            tell(now);
        }
    }
}

#[cold]
fn tell(now: u64) {
    let mut line = String::from(bundle::LIVE_PREFIX);
    let _ = write!(line, "{{\"ms\":{},\"guests\":[", boot::since_start(now) / 1000);
    let mut separator = "";
    guests::each_running(|name, vm| {
        let _ = write!(line, "{separator}{{\"name\":\"{name}\",\"vcpus\":[");
        separator = ",";
        for (index, remote) in vm.remotes().iter().enumerate() {
            let counts: &Counts = &remote.counts;
            let _ = write!(line, "{}{counts}", if index == 0 { "" } else { "," });
        }
        line.push_str("]}");
    });
    line.push_str("]}");
    log::raw(format_args!("{line}"));
}
