//! Counts what L1 asked for and how often L2 was left.

use pv_abi::l0::ExitReason;
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Reasons have smaller numbers.
const REASONS: usize = 32;

/// Counters of one L1, shown as JSON.
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls that were answered.
    pub calls: Counter,
    /// Times the hypervisor stopped L2 and came back to this process.
    pub stops: Counter,
    /// Accesses of L2 to MSRs that were answered here.
    pub msrs: Counter,
    /// RUNs that returned, by reason: entries of L1 that L2 caused, or a deadline did.
    entries: [Counter; REASONS],
}

/// One of them.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn count(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Counters {
    /// A RUN returned for the reason with this number.
    pub fn entered(&self, reason: u32) {
        if let Some(counter) = self.entries.get(reason as usize) {
            counter.count();
        }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [calls, stops, msrs] = [&self.calls, &self.stops, &self.msrs].map(Counter::value);
        write!(f, "\"calls\":{calls},\"stops\":{stops},\"msrs\":{msrs},\"entries\":{{")?;
        let counted = (0..).zip(&self.entries).filter(|(_, counter)| counter.value() > 0);
        for (index, (reason, counter)) in counted.enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}\"{:?}\":{}", ExitReason::from_raw(reason), counter.value())?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_names() {
        let counters = Counters::default();
        counters.stops.count();
        [1, 11, 11, 99].into_iter().for_each(|reason| counters.entered(reason));
        let shown = counters.to_string();
        let expected = "\"calls\":0,\"stops\":1,\"msrs\":0,\"entries\":{\"Io\":1,\"Deadline\":2}";
        assert_eq!(shown, expected);
    }
}
