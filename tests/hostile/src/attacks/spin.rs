//! A guest that does not yield.
//! May: nothing. Context: any. Input: trusted.

use crate::{
    judge::{Group, Rounds, attack},
    println,
    runtime::{abi::tsc, counters::Reason},
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use suite::{skip, verdict::Verdict};

pub const GROUP: Group = Group { name: "spin", attacks: &[attack("masked", "EVT-9", 1, masked)] };

static SECONDS: AtomicU64 = AtomicU64::new(0);
static RATE: AtomicU64 = AtomicU64::new(0);

/// For how long; 0 to skip it.
pub fn set_seconds(seconds: u64) {
    SECONDS.store(seconds, Relaxed);
}

/// TSC ticks per second.
pub fn set_rate(hz: u64) {
    RATE.store(hz, Relaxed);
}

/// Spins with the virtual interrupt flag clear and no entry to the hypervisor of its own. Who
/// watches types a key meanwhile: the hypervisor takes it, which its counter tells afterwards.
fn masked(rounds: &mut Rounds) -> Verdict {
    let seconds = SECONDS.load(Relaxed);
    if seconds == 0 {
        return skip!("spin= does not say for how long");
    }
    println!("# spin.masked: spinning for {seconds} s");
    let start = tsc();
    while tsc() - start < seconds * RATE.load(Relaxed) {
        core::hint::spin_loop();
    }
    println!("# spin.masked: done");
    while rounds.next().is_some() {}
    rounds.entered(Reason::ConsoleInterrupt, 1)
}
