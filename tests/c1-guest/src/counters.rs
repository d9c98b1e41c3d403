//! L1's counters: what happened between two moments.

use crate::{
    abi,
    tap::{Verdict, equal},
};
pub use pv_abi::ext::counter::Reason as Exit;
use pv_abi::ext::{call, counter};

/// How many reasons there are.
pub const REASONS: usize = Exit::ALL.len();

const OTHERS: [u64; 5] =
    [counter::EXITS, counter::EVENTS, counter::FILLS, counter::FLUSHES, counter::DIRECT_SWITCHES];

/// Reads one counter.
pub fn read(index: u64) -> u64 {
    abi::call1(call::READ_COUNTER, index)
}

/// What was counted.
#[derive(Clone, Copy, Debug)]
pub struct Counters {
    reasons: [u64; REASONS],
    pub exits: u64,
    pub events: u64,
    pub fills: u64,
    pub flushes: u64,
    pub direct_switches: u64,
}

impl Counters {
    /// Everything since start.
    pub fn now() -> Self {
        let reasons = core::array::from_fn(|reason| read(reason as u64));
        let [exits, events, fills, flushes, direct_switches] = OTHERS.map(read);
        Self { reasons, exits, events, fills, flushes, direct_switches }
    }

    /// What `body` caused, without what reading the counters costs.
    pub fn of<T>(body: impl FnOnce() -> T) -> Self {
        Self::with(body).1
    }

    /// The same, with what `body` returned.
    pub fn with<T>(body: impl FnOnce() -> T) -> (T, Self) {
        let before = Self::now();
        let result = body();
        let after = Self::now();
        // Between two reads of one counter lie as many reads as there are counters.
        let own = (REASONS + OTHERS.len()) as u64;
        let mut reasons =
            core::array::from_fn(|reason| after.reasons[reason] - before.reasons[reason]);
        reasons[Exit::Hypercall as usize] -= own;
        let seen = Self {
            reasons,
            exits: after.exits - before.exits - own,
            events: after.events - before.events,
            fills: after.fills - before.fills,
            flushes: after.flushes - before.flushes,
            direct_switches: after.direct_switches - before.direct_switches,
        };
        (result, seen)
    }

    /// Exits for one reason.
    pub const fn count(&self, reason: Exit) -> u64 {
        self.reasons[reason as usize]
    }

    /// Judges that exactly these exits happened. Silent fills of shadow entries may come on top,
    /// unless they are listed.
    pub fn exactly(&self, expected: &[(Exit, u64)]) -> Verdict {
        for (reason, (_, name)) in Exit::ALL.into_iter().enumerate() {
            let listed = expected.iter().find(|(exit, _)| *exit as usize == reason);
            if let Some((_, count)) = listed {
                equal(name, self.reasons[reason], *count)?;
            } else if reason != Exit::PageFaultFilled as usize {
                equal(name, self.reasons[reason], 0)?;
            }
        }
        Ok(())
    }
}
