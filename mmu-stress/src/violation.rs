//! The rules, and what it means to break one.

use serde::Serialize;
use std::fmt;

/// A rule of `docs/shadow-mmu.md` (F, I, N) or of `docs/mmu-stress.md` (the others).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Rule {
    /// Stale after a root load with flush.
    F1,
    /// Stale after a full flush.
    F2,
    /// Stale in the hardware's caches though the tables are right: a flush did not reach them.
    F3,
    /// Refused though the guest's tables permit it.
    F4,
    /// Used without A in the guest's entries.
    F5,
    /// Stale after a flush of this address.
    F6,
    /// A freed table was walked.
    I4,
    /// Written, or writable, without D in the guest's entry; or A or D set where they must not be.
    I5,
    /// Stale though the store was announced and the note drained.
    N1,
    /// Stale though the MMU was told that notes were lost.
    N3,
    /// Stale in a root that is not pinned.
    N4,
    /// A translation that the guest's tables never gave.
    S1,
    /// User mode reaches a supervisor page.
    S2,
    /// No progress: an access faults for ever, or a call does not return.
    S3,
    /// An entry points to a frame that is not the VM's, or a link to one that is no table.
    S4,
    /// The MMU panicked, or its own check failed.
    S5,
    /// A host frame was reached after it was taken away.
    H1,
    /// The dirty log misses a frame that was written.
    D1,
}

impl Rule {
    /// The rule in one sentence.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::F1 => "a root load with flush leaves nothing stale in the lower half",
            Self::F2 => "a full flush leaves nothing stale",
            Self::F3 => "a flush reaches the hardware's caches",
            Self::F4 => "an access that the guest's tables permit is not refused",
            Self::F5 => "nothing is used without A in the guest's entries",
            Self::F6 => "a flush of one address leaves nothing stale there",
            Self::I4 => "no table is freed while it can be walked",
            Self::I5 => "A and D are set in the entry that was walked, D before the first write",
            Self::N1 => "an announced store counts once its note is drained",
            Self::N3 => "when notes are lost, nothing they could be about is trusted",
            Self::N4 => "a root that is not pinned is built again after each flush",
            Self::S1 => "the shadow maps nothing that the guest's tables never allowed",
            Self::S2 => "user mode reaches no supervisor page",
            Self::S3 => "every fault and every call comes to an end",
            Self::S4 => "the shadow points to frames of its own VM only",
            Self::S5 => "the MMU does not panic and its structures agree",
            Self::H1 => "a host frame that was taken away is not reached",
            Self::D1 => "the dirty log names every frame that was written",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A broken rule.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// The VM it happened in.
    pub vm: usize,
    /// The vCPU that saw it.
    pub vcpu: usize,
    /// Its step.
    pub step: u64,
    /// What it saw.
    pub what: String,
    /// More, a line each.
    pub detail: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rule {} is broken: {}", self.rule, self.rule.text())?;
        write!(f, "  VM {}, vCPU {}, step {}: {}", self.vm, self.vcpu, self.step, self.what)?;
        self.detail.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}
