//! Works out L1's counters per operation from counted batches.
//!
//! Reading the counters is itself counted; the empty row `noop` shows how much, and is subtracted.

use crate::lines::Counts;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The row that does nothing.
const EMPTY: &str = "noop";

/// Counters by name.
pub type Counters = BTreeMap<String, f64>;

/// What one row cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counted {
    /// The row's name.
    pub name: String,
    /// Operations counted.
    pub n: u64,
    /// Counts per operation; those that are zero are left out.
    pub per_operation: Counters,
}

/// The same per operation, of what the operations themselves cost.
#[must_use]
pub fn per_operation(batches: &[Counts]) -> Vec<Counted> {
    let empty = batches.iter().find(|batch| batch.name == EMPTY);
    let rows = batches.iter().map(|batch| {
        let own = empty.filter(|_| batch.name != EMPTY).map(|empty| &empty.counts);
        let names: BTreeSet<&String> =
            batch.counts.keys().chain(own.into_iter().flatten().map(|(name, _)| name)).collect();
        let each = names.into_iter().map(|name| {
            let of = |counts: &BTreeMap<String, u64>| counts.get(name).copied().unwrap_or_default();
            #[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
            let [all, own, n] =
                [of(&batch.counts), own.map_or(0, of), batch.n.max(1)].map(|n| n as f64);
            (name.clone(), (all - own) / n)
        });
        let per_operation = each.filter(|(_, count)| *count != 0.0).collect();
        Counted { name: batch.name.clone(), n: batch.n, per_operation }
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(name: &str, n: u64, counts: &[(&str, u64)]) -> Counts {
        let counts = counts.iter().map(|(name, count)| ((*name).into(), *count)).collect();
        Counts { name: name.into(), n, counts }
    }

    #[test]
    fn counts_are_per_operation_and_without_their_own_cost() {
        let rows = per_operation(&[
            batch("noop", 1000, &[("exits", 4), ("by.cpuid", 4), ("by.timer", 1)]),
            batch("getppid", 50, &[("exits", 104), ("by.cpuid", 4), ("by.syscall", 100)]),
        ]);
        assert_eq!(rows[0].per_operation["exits"], 0.004);
        let expected = [("exits", 2.0), ("by.syscall", 2.0), ("by.timer", -0.02)];
        assert_eq!((rows[1].name.as_str(), rows[1].n), ("getppid", 50));
        assert_eq!(rows[1].per_operation, expected.map(|(name, n)| (name.into(), n)).into());
    }

    #[test]
    fn without_an_empty_row_nothing_is_subtracted() {
        let rows = per_operation(&[batch("getppid", 0, &[("exits", 3)])]);
        assert_eq!(rows[0].per_operation["exits"], 3.0);
    }
}
