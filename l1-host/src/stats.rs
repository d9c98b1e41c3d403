//! Counts exits by reason, with a histogram of what each cost.
//! May: nothing. Context: irq-off.

use core::fmt;

/// What an exit was about. The discriminants are the counter numbers of the guest ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Reason {
    PageFaultFilled,
    PageFaultReflected,
    Mmio,
    Hypercall,
    SyscallUser,
    SyscallReflected,
    Eretu,
    EretuPrefault,
    GeneralProtection,
    RdmsrWrmsr,
    Emulated,
    SyntheticCpuid,
    OtherException,
    SoftwareInterrupt,
    Timer,
    ConsoleInterrupt,
    OtherInterrupt,
    FailedEntry,
    LoadPgtbl,
    Flush,
    Invlpg,
    HypercallMsr,
    Halt,
}

/// All reasons, in the order of their numbers.
pub const REASONS: [(Reason, &str); 23] = [
    (Reason::PageFaultFilled, "page_fault_filled"),
    (Reason::PageFaultReflected, "page_fault_reflected"),
    (Reason::Mmio, "mmio"),
    (Reason::Hypercall, "hypercall"),
    (Reason::SyscallUser, "syscall_user"),
    (Reason::SyscallReflected, "syscall_reflected"),
    (Reason::Eretu, "eretu"),
    (Reason::EretuPrefault, "eretu_prefault"),
    (Reason::GeneralProtection, "general_protection"),
    (Reason::RdmsrWrmsr, "rdmsr_wrmsr"),
    (Reason::Emulated, "emulated"),
    (Reason::SyntheticCpuid, "synthetic_cpuid"),
    (Reason::OtherException, "other_exception"),
    (Reason::SoftwareInterrupt, "software_interrupt"),
    (Reason::Timer, "timer"),
    (Reason::ConsoleInterrupt, "console_interrupt"),
    (Reason::OtherInterrupt, "other_interrupt"),
    (Reason::FailedEntry, "failed_entry"),
    (Reason::LoadPgtbl, "load_pgtbl"),
    (Reason::Flush, "flush"),
    (Reason::Invlpg, "invlpg"),
    (Reason::HypercallMsr, "hypercall_msr"),
    (Reason::Halt, "halt"),
];

/// Buckets of a histogram: bucket n counts exits that took 2^n to 2^(n+1) ticks.
const BUCKETS: usize = 32;

/// The counters of one vCPU.
#[derive(Debug)]
pub struct ExitStats {
    counts: [u64; REASONS.len()],
    ticks: [[u32; BUCKETS]; REASONS.len()],
    /// Events delivered to the guest.
    pub events: u64,
}

impl ExitStats {
    /// All zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { counts: [0; REASONS.len()], ticks: [[0; BUCKETS]; REASONS.len()], events: 0 }
    }

    /// Counts one exit that took `ticks` of the TSC inside L1.
    #[inline]
    pub fn record(&mut self, reason: Reason, ticks: u64) {
        let bucket = (63 - (ticks | 1).leading_zeros() as usize).min(BUCKETS - 1);
        self.counts[reason as usize] += 1;
        self.ticks[reason as usize][bucket] += 1;
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

impl Default for ExitStats {
    fn default() -> Self {
        Self::new()
    }
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
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{\"guests\":[{{\"name\":\"{}\",\"tsc_hz\":{}", self.name, self.tsc_hz)?;
        write!(f, ",\"exits\":{{")?;
        let mut separator = "";
        for (reason, name) in REASONS {
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
        write!(f, "}},\"counters\":{{")?;
        for (index, (name, value)) in self.counters.iter().enumerate() {
            write!(f, "{}\"{name}\":{value}", if index == 0 { "" } else { "," })?;
        }
        write!(f, "}}}}]}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn reasons_are_in_the_order_of_their_numbers() {
        for (index, (reason, _)) in REASONS.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn the_report_is_one_line_of_json() {
        let mut exits = ExitStats::new();
        exits.record(Reason::Timer, 0);
        exits.record(Reason::Timer, 5);
        exits.record(Reason::Halt, u64::MAX);
        let report =
            Report { name: "g", exits: &exits, tsc_hz: 10, counters: &[("fills", 3), ("x", 4)] };
        let text = report.to_string();
        assert!(text.contains(r#""timer":{"count":2,"log2_ticks":[1,0,1]}"#), "{text}");
        assert!(text.contains(r#""counters":{"fills":3,"x":4}"#), "{text}");
        assert!(!text.contains('\n'));
    }
}
