//! Counts what happened.

use crate::step::KINDS;
use serde::Serialize;

/// What happened so far. Sums over vCPUs are taken by [`Counts::add`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps by kind ([`KINDS`]).
    pub steps: [u64; KINDS.len()],
    /// Accesses that the TLB served.
    pub tlb: u64,
    /// Accesses that the shadow tables served.
    pub walks: u64,
    /// Faults given to the MMU.
    pub faults: u64,
    /// Faults it reflected.
    pub reflected: u64,
    /// Faults it gave to a device.
    pub devices: u64,
    /// Stores to guest memory.
    pub stores: u64,
    /// Notes drained.
    pub notes: u64,
    /// Notes lost.
    pub lost: u64,
    /// Times the MMU had to make room.
    pub rooms: u64,
    /// Addresses looked at after flushes.
    pub looks: u64,
    /// Judgements.
    pub judged: u64,
    /// Of them, those for which too much was forgotten.
    pub unjudged: u64,
}

impl Counts {
    /// All steps.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.steps.iter().sum()
    }

    fn fields(&mut self) -> [&mut u64; 12] {
        let Self {
            steps: _,
            tlb,
            walks,
            faults,
            reflected,
            devices,
            stores,
            notes,
            lost,
            rooms,
            looks,
            judged,
            unjudged,
        } = self;
        [
            tlb, walks, faults, reflected, devices, stores, notes, lost, rooms, looks, judged,
            unjudged,
        ]
    }

    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        for (sum, more) in self.steps.iter_mut().zip(other.steps) {
            *sum += more;
        }
        for (sum, more) in self.fields().into_iter().zip(other.fields()) {
            *sum += *more;
        }
    }

    /// Every count with its name.
    #[must_use]
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        let names = [
            "TLB hits",
            "walks",
            "faults",
            "reflected",
            "device accesses",
            "guest stores",
            "notes",
            "lost notes",
            "shortages",
            "looks",
            "judged",
            "unjudged",
        ];
        let mut counts = self.clone();
        let fields = counts.fields().map(|count| *count);
        KINDS.into_iter().zip(self.steps).chain(names.into_iter().zip(fields)).collect()
    }
}

impl Serialize for Counts {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.named())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_keep_every_count_in_its_place() {
        let mut sum = Counts { tlb: 1, unjudged: 2, ..Counts::default() };
        let mut more = Counts { tlb: 10, looks: 5, ..Counts::default() };
        more.steps[3] = 7;
        sum.add(&more);
        assert_eq!((sum.tlb, sum.looks, sum.unjudged, sum.total()), (11, 5, 2, 7));
        assert!(sum.named().contains(&("load root", 7)));
        assert!(sum.named().contains(&("unjudged", 2)));
    }
}
