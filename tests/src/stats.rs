//! Reads L1's statistics and the results of its check of the shadow roots.

use serde_json::Value;

/// Statistics of a guest.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats(Value);

impl Stats {
    /// Reads what `roost run --stats=json:FILE` wrote: of each guest, in the order in which they ended.
    ///
    /// # Panics
    /// It is no JSON of statistics.
    #[must_use]
    pub fn all(json: &str) -> Vec<Self> {
        let all: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}"));
        let guests = all["guests"].as_array().unwrap_or_else(|| panic!("no guests: {json}"));
        guests.iter().cloned().map(Self).collect()
    }

    /// The guest's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0["name"].as_str().unwrap_or_default()
    }

    /// How often the guest was left for `reason`; a reason that never was is not listed.
    #[must_use]
    pub fn exits(&self, reason: &str) -> u64 {
        self.0["exits"][reason]["count"].as_u64().unwrap_or_default()
    }

    /// The sum over all reasons.
    #[must_use]
    pub fn all_exits(&self) -> u64 {
        let reasons = self.0["exits"].as_object().into_iter().flat_map(|all| all.values());
        reasons.filter_map(|reason| reason["count"].as_u64()).sum()
    }

    /// A counter that is no exit reason.
    ///
    /// # Panics
    /// There is no such counter.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        self.0["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}: {}", self.0))
    }
}

/// What a walk of all shadow roots saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootCheck {
    /// Live roots.
    pub roots: u64,
    /// Leaf entries that map a guest's frames.
    pub guest_leaves: u64,
    /// Leaf entries that map the switcher window.
    pub window_leaves: u64,
    /// Entries that should not be there.
    pub violations: u64,
}

impl RootCheck {
    /// All results in L1's log.
    #[must_use]
    pub fn all(log: &str) -> Vec<Self> {
        let results = log.lines().filter_map(|line| line.split_once("root check: "));
        results.filter_map(|(_, result)| Self::parse(result)).collect()
    }

    /// Reads `1 roots, 2 guest leaves, 3 window leaves, 0 violations`.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim_end().split(", ");
        let mut number = |unit| parts.next()?.strip_suffix(unit)?.trim_end().parse().ok();
        Some(Self {
            roots: number("roots")?,
            guest_leaves: number("guest leaves")?,
            window_leaves: number("window leaves")?,
            violations: number("violations")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_checks_are_found_in_a_log() {
        let log = "[   1.5] root check: slot 260 of 0x1000 is mapped\r\n\
                   [   1.6] root check: 6 roots, 349 guest leaves, 78 window leaves, 1 violations\r\n";
        let check = RootCheck { roots: 6, guest_leaves: 349, window_leaves: 78, violations: 1 };
        assert_eq!(RootCheck::all(log), [check]);
    }

    #[test]
    fn counts_are_read() {
        let json = r#"{"guests":[{"name":"g","exits":{"halt":{"count":2},"timer":{"count":3}},
                       "counters":{"fills":7}}]}"#;
        let [stats] = &Stats::all(json)[..] else { panic!("one guest") };
        assert_eq!((stats.name(), stats.exits("halt"), stats.exits("mmio")), ("g", 2, 0));
        assert_eq!((stats.all_exits(), stats.counter("fills")), (5, 7));
    }
}
