//! The hypervisor's counters, where it has them: what happened between two moments.

use crate::{
    abi, extension,
    tap::{Verdict, equal, skip, within},
};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
pub use pv_abi::ext::counter::Reason as Exit;
use pv_abi::ext::{call, counter};

/// How many reasons there are.
pub const REASONS: usize = Exit::ALL.len();

const OTHERS: [u64; 5] = [
    counter::EXITS,
    counter::EVENTS,
    counter::FILLS,
    counter::DIRECT_SWITCHES,
    counter::EARLY_FAULTS,
];

/// The command line says that costs do not matter.
static IGNORED: AtomicBool = AtomicBool::new(false);

/// Has costs judged no longer.
pub fn ignore() {
    IGNORED.store(true, Relaxed);
}

/// Whether what happened is known.
fn known() -> bool {
    extension::present() && !IGNORED.load(Relaxed)
}

/// Skips a check that is about costs and nothing else where they are not known.
pub fn needed() -> Verdict {
    extension::needed()?;
    if known() { Ok(()) } else { skip("costs are not judged: any-cost") }
}

/// Compares a number with what is expected, if it is known.
pub fn counted(what: &'static str, found: Option<u64>, expected: u64) -> Verdict {
    found.map_or(Ok(()), |found| equal(what, found, expected))
}

/// The same for a range.
pub fn counted_within(what: &'static str, found: Option<u64>, least: u64, most: u64) -> Verdict {
    found.map_or(Ok(()), |found| within(what, found, least, most))
}

/// Reads one counter.
pub fn read(index: u64) -> u64 {
    abi::call1(call::READ_COUNTER, index)
}

/// What was counted; `None` where it is not known.
#[derive(Clone, Copy, Debug)]
pub struct Counters {
    reasons: Option<[u64; REASONS]>,
    pub exits: Option<u64>,
    pub events: Option<u64>,
    pub fills: Option<u64>,
    pub direct_switches: Option<u64>,
    pub early_faults: Option<u64>,
}

/// Everything since start.
struct Sums {
    reasons: [u64; REASONS],
    others: [u64; OTHERS.len()],
}

impl Sums {
    fn now() -> Self {
        let reasons = core::array::from_fn(|reason| read(reason as u64));
        Self { reasons, others: OTHERS.map(read) }
    }
}

impl Counters {
    /// What `body` caused, without what reading the counters costs.
    pub fn of<T>(body: impl FnOnce() -> T) -> Self {
        Self::with(body).1
    }

    /// The same, with what `body` returned.
    pub fn with<T>(body: impl FnOnce() -> T) -> (T, Self) {
        if !known() {
            let unknown = Self {
                reasons: None,
                exits: None,
                events: None,
                fills: None,
                direct_switches: None,
                early_faults: None,
            };
            return (body(), unknown);
        }
        let before = Sums::now();
        let result = body();
        let after = Sums::now();
        // Between two reads of one counter lie as many reads as there are counters.
        let own = (REASONS + OTHERS.len()) as u64;
        let mut reasons =
            core::array::from_fn(|reason| after.reasons[reason] - before.reasons[reason]);
        reasons[Exit::Hypercall as usize] -= own;
        let [exits, events, fills, direct_switches, early_faults] =
            core::array::from_fn(|index| Some(after.others[index] - before.others[index]));
        let exits = exits.map(|exits| exits - own);
        let reasons = Some(reasons);
        (result, Self { reasons, exits, events, fills, direct_switches, early_faults })
    }

    /// Exits for one reason.
    pub fn count(&self, reason: Exit) -> Option<u64> {
        self.reasons.map(|reasons| reasons[reason as usize])
    }

    /// Judges that exactly these exits happened, if that is known. Silent fills of shadow entries
    /// may come on top, unless they are listed.
    pub fn exactly(&self, expected: &[(Exit, u64)]) -> Verdict {
        let Some(reasons) = &self.reasons else { return Ok(()) };
        for (reason, (_, name)) in Exit::ALL.into_iter().enumerate() {
            let listed = expected.iter().find(|(exit, _)| *exit as usize == reason);
            if let Some((_, count)) = listed {
                equal(name, reasons[reason], *count)?;
            } else if reason != Exit::PageFaultFilled as usize {
                equal(name, reasons[reason], 0)?;
            }
        }
        Ok(())
    }
}
