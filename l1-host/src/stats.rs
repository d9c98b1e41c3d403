//! Counts exits by reason and, where somebody wants to know, with a histogram of what each cost.
//! May: nothing. Context: irq-off.

use alloc::vec::Vec;
use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
pub use pv_abi::ext::counter::Reason;

/// Buckets of a histogram: bucket n counts exits that took 2^n to 2^(n+1) ticks.
const BUCKETS: usize = 32;

/// Whether exits are timed: reading the clock twice costs more than some exits' own work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// They are.
    On,
    /// They are only counted.
    Off,
}

/// The counters of one vCPU.
#[derive(Debug)]
pub struct ExitStats {
    counts: [u64; Reason::ALL.len()],
    ticks: [[u32; BUCKETS]; Reason::ALL.len()],
    timing: Timing,
    /// Events delivered to the guest.
    pub events: u64,
}

impl ExitStats {
    /// All zero.
    #[must_use]
    pub const fn new(timing: Timing) -> Self {
        Self {
            counts: [0; Reason::ALL.len()],
            ticks: [[0; BUCKETS]; Reason::ALL.len()],
            timing,
            events: 0,
        }
    }

    /// When an exit begins, by `clock` if exits are timed.
    #[inline]
    pub fn begin(&self, clock: impl FnOnce() -> u64) -> Option<u64> {
        (self.timing == Timing::On).then(clock)
    }

    /// Counts one exit, which began at `begin`.
    #[inline]
    pub fn record(&mut self, reason: Reason, begin: Option<u64>, clock: impl FnOnce() -> u64) {
        self.counts[reason as usize] += 1;
        if let Some(begin) = begin {
            let ticks = clock().wrapping_sub(begin);
            let bucket = (63 - (ticks | 1).leading_zeros() as usize).min(BUCKETS - 1);
            self.ticks[reason as usize][bucket] += 1;
        }
    }

    /// Adds what another vCPU counted.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
        for (sums, ticks) in self.ticks.iter_mut().zip(&other.ticks) {
            for (sum, count) in sums.iter_mut().zip(ticks) {
                *sum = sum.saturating_add(*count);
            }
        }
        self.events += other.events;
    }

    /// Exits for `reason`.
    #[must_use]
    pub fn count(&self, reason: usize) -> Option<u64> {
        self.counts.get(reason).copied()
    }

    /// All exits.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// How often a vCPU was left, by reason, for others to see while it runs.
#[derive(Debug)]
pub struct Counts([AtomicU64; Reason::ALL.len()]);

impl Counts {
    /// All zero.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Reason::ALL.len()])
    }

    /// Counts an exit. Only the CPU that runs the vCPU does.
    pub fn add(&self, reason: Reason) {
        let count = &self.0[reason as usize];
        count.store(count.load(Relaxed) + 1, Relaxed);
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

/// As JSON: reasons that have occurred, and how often.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = Reason::ALL.iter().zip(&self.0).map(|((_, name), n)| (*name, n.load(Relaxed)));
        object(f, counts.filter(|(_, count)| *count != 0))
    }
}

/// Names and numbers as an object of JSON.
fn object<'a>(
    f: &mut fmt::Formatter<'_>,
    members: impl Iterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    write!(f, "{{")?;
    for (index, (name, value)) in members.enumerate() {
        write!(f, "{}\"{name}\":{value}", if index == 0 { "" } else { "," })?;
    }
    write!(f, "}}")
}

/// Adds a counter to `sums`, in which each name is once.
pub fn add_counter(sums: &mut Vec<(&'static str, u64)>, (name, value): (&'static str, u64)) {
    match sums.iter_mut().find(|(other, _)| *other == name) {
        Some((_, sum)) => *sum += value,
        None => sums.push((name, value)),
    }
}

/// What one vCPU has counted.
#[derive(Debug)]
pub struct VcpuReport<'a> {
    /// Its exits.
    pub exits: &'a ExitStats,
    /// Everything else.
    pub counters: Vec<(&'static str, u64)>,
}

/// The statistics of a guest as one line of JSON.
#[derive(Debug)]
pub struct Report<'a> {
    /// The guest's name; no character in it needs escaping.
    pub name: &'a str,
    /// Its exits.
    pub exits: &'a ExitStats,
    /// TSC ticks per second, to turn buckets into nanoseconds.
    pub tsc_hz: u64,
    /// Everything else that was counted.
    pub counters: &'a [(&'a str, u64)],
    /// The same of each vCPU, in the order of their numbers, without histograms.
    pub vcpus: &'a [VcpuReport<'a>],
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{\"guests\":[{{\"name\":\"{}\",\"tsc_hz\":{}", self.name, self.tsc_hz)?;
        write!(f, ",\"exits\":{{")?;
        let mut separator = "";
        for (reason, name) in Reason::ALL {
            let (count, ticks) =
                (self.exits.counts[reason as usize], &self.exits.ticks[reason as usize]);
            if count == 0 {
                continue;
            }
            write!(f, "{separator}\"{name}\":{{\"count\":{count},\"log2_ticks\":[")?;
            let used = ticks.iter().rposition(|&n| n != 0).map_or(0, |last| last + 1);
            for (index, bucket) in ticks[..used].iter().enumerate() {
                write!(f, "{}{bucket}", if index == 0 { "" } else { "," })?;
            }
            write!(f, "]}}")?;
            separator = ",";
        }
        write!(f, "}},\"counters\":")?;
        object(f, self.counters.iter().copied())?;
        write!(f, ",\"vcpus\":[")?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            write!(f, "{}{vcpu}", if index == 0 { "" } else { "," })?;
        }
        write!(f, "]}}]}}")
    }
}

impl fmt::Display for VcpuReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{\"exits\":{{")?;
        let mut separator = "";
        for (reason, name) in Reason::ALL {
            let count = self.exits.counts[reason as usize];
            if count != 0 {
                write!(f, "{separator}\"{name}\":{{\"count\":{count}}}")?;
                separator = ",";
            }
        }
        write!(f, "}},\"counters\":")?;
        object(f, self.counters.iter().copied())?;
        write!(f, "}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn the_report_is_one_line_of_json() {
        let mut exits = ExitStats::new(Timing::On);
        for (reason, ticks) in [(Reason::Timer, 0), (Reason::Timer, 5), (Reason::Halt, u64::MAX)] {
            let begin = exits.begin(|| 7);
            exits.record(reason, begin, || ticks.wrapping_add(7));
        }
        let vcpus = [VcpuReport { exits: &exits, counters: vec![("fills", 3)] }];
        let counters = &[("fills", 3), ("x", 4)];
        let report = Report { name: "g", exits: &exits, tsc_hz: 10, counters, vcpus: &vcpus };
        let text = report.to_string();
        let vcpu = r#""vcpus":[{"exits":{"timer":{"count":2},"halt":{"count":1}},"counters":{"fills":3}}]}]}"#;
        assert!(text.ends_with(vcpu), "{text}");
        assert!(text.contains(r#""timer":{"count":2,"log2_ticks":[1,0,1]}"#), "{text}");
        assert!(text.contains(r#""counters":{"fills":3,"x":4}"#), "{text}");
        assert!(!text.contains('\n'));
    }

    #[test]
    fn live_counters_are_json() {
        let counts = Counts::new();
        assert_eq!(counts.to_string(), "{}");
        for reason in [Reason::Halt, Reason::Timer, Reason::Halt] {
            counts.add(reason);
        }
        assert_eq!(counts.to_string(), r#"{"timer":1,"halt":2}"#);
    }

    #[test]
    fn exits_that_are_not_timed_are_counted() {
        let mut exits = ExitStats::new(Timing::Off);
        assert_eq!(exits.begin(|| panic!("the clock is read")), None);
        exits.record(Reason::Timer, None, || panic!("the clock is read"));
        assert_eq!(exits.total(), 1);
    }
}
