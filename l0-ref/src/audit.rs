//! Compares what this process holds before and after a run: an L1 must leave nothing behind, and
//! must not have touched anything.
//! May: read /proc.

use anyhow::{Context, Result};
use std::{fmt, fs};

/// Memory beside L1's that is looked at.
const CANARY: usize = 4 << 20;

/// What was held at first.
#[derive(Debug)]
pub struct Audit {
    before: Holdings,
    /// Lies where the system places mappings, like L1's memory and the regions of its L2 VMs.
    canary: Vec<u8>,
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    /// Of L1's memory.
    mappings: usize,
    /// Memory of its own, KiB.
    memory: u64,
}

/// What was held before and after, shown as JSON.
#[derive(Clone, Copy, Debug)]
pub struct Findings {
    before: Holdings,
    after: Holdings,
    intact: bool,
}

const fn pattern(index: usize) -> u8 {
    (index % 251) as u8
}

impl Audit {
    /// Looks at what is held now.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn begin() -> Result<Self> {
        let canary = (0..CANARY).map(pattern).collect();
        Ok(Self { before: Holdings::now()?, canary })
    }

    /// Looks again, after everything of L1 was dropped.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn end(&self) -> Result<Findings> {
        let intact = (0..).zip(&self.canary).all(|(index, byte)| *byte == pattern(index));
        Ok(Findings { before: self.before, after: Holdings::now()?, intact })
    }
}

impl Holdings {
    fn now() -> Result<Self> {
        let descriptors = fs::read_dir("/proc/self/fd").context("cannot read /proc")?.count();
        let maps = fs::read_to_string("/proc/self/maps").context("cannot read /proc")?;
        let mappings = maps.lines().filter(|line| line.contains("/memfd:l1")).count();
        let status = fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
        let memory = status.lines().find_map(|line| {
            line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok()
        });
        Ok(Self { descriptors, mappings, memory: memory.context("/proc tells no RssAnon")? })
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after, intact } = self;
        let both = |name, before: u64, after: u64| format!("\"{name}\":[{before},{after}]");
        let counts = [
            both("descriptors", before.descriptors as u64, after.descriptors as u64),
            both("mappings", before.mappings as u64, after.mappings as u64),
            both("memory_kib", before.memory, after.memory),
        ];
        write!(f, "{},\"canary\":{intact}", counts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::Ram;

    /// Other tests come and go meanwhile: no numbers can be compared.
    #[test]
    fn what_is_held_is_seen() {
        let _ram = Ram::new(16).unwrap();
        let mut audit = Audit::begin().unwrap();
        assert!(audit.before.descriptors > 3 && audit.before.mappings > 0);
        assert!(audit.before.memory * 1024 > CANARY as u64);
        assert!(audit.end().unwrap().intact);
        audit.canary[CANARY / 2] ^= 1;
        let found = audit.end().unwrap();
        assert!(found.to_string().ends_with("],\"canary\":false"), "{found}");
    }
}
