//! Counts results by rule of the specification; prints them in the Test Anything Protocol, and
//! their sums as JSON.
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

/// What the line of a result says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// All as the rules say.
    Fine,
    /// Something else.
    Wrong,
    /// Nothing, for this reason.
    Skipped(&'a str),
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
    fn add(&mut self, rules: &'static str, outcome: Outcome) {
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

    /// Prints the line of check `group.name` of `rules`, and counts it.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn line(
        &mut self,
        out: &mut impl Write,
        rules: &'static str,
        group: &str,
        name: &str,
        found: Found<'_>,
    ) -> fmt::Result {
        let number = self.all.sum() + 1;
        let (not, outcome) = match found {
            Found::Fine => ("", Outcome::Passed),
            Found::Wrong => ("not ", Outcome::Failed),
            Found::Skipped(_) => ("", Outcome::Skipped),
        };
        self.add(rules, outcome);
        write!(out, "{not}ok {number} - {rules}: {group}.{name}")?;
        match found {
            Found::Skipped(why) => writeln!(out, " # SKIP {why}"),
            _ => writeln!(out),
        }
    }

    /// Prints the last lines: the sums for people, and all as JSON.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn end(&self, out: &mut impl Write) -> fmt::Result {
        let Counts { passed, failed, skipped } = self.all;
        writeln!(out, "# {passed} passed, {skipped} skipped, {failed} failed")?;
        self.json(out)
    }

    /// Keeps a measurement.
    pub fn measure(&mut self, name: &'static str, value: u64) {
        let _ = self.measures.try_push((name, value));
    }

    /// One line: `{"passed":..,"failed":..,"skipped":..,"rules":{..},"measured":{..}}`.
    ///
    /// # Errors
    /// Those of `out`.
    fn json(&self, out: &mut impl Write) -> fmt::Result {
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
    fn lines_are_numbered() {
        let (mut tally, mut text) = (Tally::default(), String::new());
        tally.line(&mut text, "A-1", "a", "x", Found::Fine).unwrap();
        tally.line(&mut text, "A-1", "a", "y", Found::Skipped("no need")).unwrap();
        tally.line(&mut text, "A-2 A-3", "b", "z", Found::Wrong).unwrap();
        tally.end(&mut text).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "ok 1 - A-1: a.x",
                "ok 2 - A-1: a.y # SKIP no need",
                "not ok 3 - A-2 A-3: b.z",
                "# 1 passed, 1 skipped, 1 failed",
            ]
        );
        assert!(lines[4].starts_with("{\"passed\":1,\"failed\":1,\"skipped\":1,"), "{text}");
    }

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
