//! Counts results by rule of the specification and prints them as JSON.
//! May: nothing. Input: trusted.

use arrayvec::ArrayVec;
use core::fmt::{self, Write};

/// Rules that are told apart.
const MOST_RULES: usize = 256;
/// Measurements that are kept.
const MOST_MEASURES: usize = 48;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As the rules say.
    Passed,
    /// Not so.
    Failed,
    /// Not checked.
    Skipped,
}

/// Numbers of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: u32,
    /// Failed.
    pub failed: u32,
    /// Skipped.
    pub skipped: u32,
}

impl Counts {
    const fn add(&mut self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Passed => &mut self.passed,
            Outcome::Failed => &mut self.failed,
            Outcome::Skipped => &mut self.skipped,
        };
        *count += 1;
    }

    /// All.
    #[must_use]
    pub const fn sum(&self) -> u32 {
        self.passed + self.failed + self.skipped
    }
}

/// Results so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Of all checks.
    pub all: Counts,
    rules: ArrayVec<(&'static str, Counts), MOST_RULES>,
    measures: ArrayVec<(&'static str, u64), MOST_MEASURES>,
}

impl Tally {
    /// Counts a check of `rules`, which are separated by spaces.
    pub fn add(&mut self, rules: &'static str, outcome: Outcome) {
        self.all.add(outcome);
        for rule in rules.split(' ') {
            if let Some((_, counts)) = self.rules.iter_mut().find(|(name, _)| *name == rule) {
                counts.add(outcome);
            } else {
                let mut counts = Counts::default();
                counts.add(outcome);
                let _ = self.rules.try_push((rule, counts));
            }
        }
    }

    /// Keeps a measurement.
    pub fn measure(&mut self, name: &'static str, value: u64) {
        let _ = self.measures.try_push((name, value));
    }

    /// One line: `{"passed":..,"failed":..,"skipped":..,"rules":{..},"measured":{..}}`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn json(&self, out: &mut impl Write) -> fmt::Result {
        write!(out, "{{")?;
        counts(out, &self.all)?;
        write!(out, ",\"rules\":{{")?;
        for (index, (name, rule)) in self.rules.iter().enumerate() {
            write!(out, "{}\"{name}\":{{", comma(index))?;
            counts(out, rule)?;
            write!(out, "}}")?;
        }
        write!(out, "}},\"measured\":{{")?;
        for (index, (name, value)) in self.measures.iter().enumerate() {
            write!(out, "{}\"{name}\":{value}", comma(index))?;
        }
        writeln!(out, "}}}}")
    }
}

fn counts(out: &mut impl Write, counts: &Counts) -> fmt::Result {
    let Counts { passed, failed, skipped } = counts;
    write!(out, "\"passed\":{passed},\"failed\":{failed},\"skipped\":{skipped}")
}

const fn comma(index: usize) -> &'static str {
    if index == 0 { "" } else { "," }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_by_rule() {
        let mut tally = Tally::default();
        tally.add("L0-A-1 L0-A-2", Outcome::Passed);
        tally.add("L0-A-2", Outcome::Failed);
        tally.add("L0-B-1", Outcome::Skipped);
        tally.measure("cpuid", 42);
        let mut json = String::new();
        tally.json(&mut json).unwrap();
        assert_eq!(
            json,
            "{\"passed\":1,\"failed\":1,\"skipped\":1,\"rules\":{\
             \"L0-A-1\":{\"passed\":1,\"failed\":0,\"skipped\":0},\
             \"L0-A-2\":{\"passed\":1,\"failed\":1,\"skipped\":0},\
             \"L0-B-1\":{\"passed\":0,\"failed\":0,\"skipped\":1}},\
             \"measured\":{\"cpuid\":42}}\n"
        );
        assert_eq!(tally.all.sum(), 3);
    }
}
