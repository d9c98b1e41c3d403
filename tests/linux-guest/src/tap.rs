//! Writes test results in the Test Anything Protocol.

use crate::check::Verdict;
use std::time::Duration;

/// How one check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran to its end.
    Ended(Verdict),
    /// It failed, for this reason.
    Failed(String),
}

/// Counts of outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pass: usize,
    fail: usize,
    skip: usize,
}

impl Tally {
    /// Counts an outcome and returns its line.
    pub fn line(&mut self, name: &str, outcome: &Outcome, time: Duration) -> String {
        let number = self.pass + self.fail + self.skip + 1;
        let ms = time.as_millis();
        match outcome {
            Outcome::Ended(Verdict::Pass) => {
                self.pass += 1;
                format!("ok {number} - {name} # ms={ms}")
            }
            Outcome::Ended(Verdict::Skip(reason)) => {
                self.skip += 1;
                format!("ok {number} - {name} # SKIP {}", one_line(reason))
            }
            Outcome::Failed(reason) => {
                self.fail += 1;
                format!("not ok {number} - {name}: {} # ms={ms}", one_line(reason))
            }
        }
    }

    /// The last line. Something must have been checked: otherwise the run itself is a failure.
    pub fn last_line(&self) -> String {
        let fail = if self.passed() { 0 } else { self.fail.max(1) };
        format!("@DONE pass={} fail={fail} skip={}", self.pass, self.skip)
    }

    /// Whether the run as a whole passed.
    pub const fn passed(&self) -> bool {
        self.fail == 0 && self.pass > 0
    }
}

/// TAP gives line ends and `#` a meaning.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ").replace('#', "no. ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_millis(12);

    #[test]
    fn lines_are_numbered_and_counted() {
        let mut tally = Tally::default();
        let pass = Outcome::Ended(Verdict::Pass);
        assert_eq!(tally.line("a", &pass, TIME), "ok 1 - a # ms=12");
        let skip = Outcome::Ended(Verdict::Skip("no guest".into()));
        assert_eq!(tally.line("b", &skip, TIME), "ok 2 - b # SKIP no guest");
        assert!(tally.passed());
        let fail = Outcome::Failed("x\ny".into());
        assert_eq!(tally.line("c", &fail, TIME), "not ok 3 - c: x y # ms=12");
        assert_eq!(tally.last_line(), "@DONE pass=1 fail=1 skip=1");
        assert!(!tally.passed());
    }

    #[test]
    fn a_run_that_checked_nothing_fails() {
        let mut tally = Tally::default();
        tally.line("a", &Outcome::Ended(Verdict::Skip("why".into())), TIME);
        assert!(!tally.passed());
        assert_eq!(tally.last_line(), "@DONE pass=0 fail=1 skip=1");
    }
}
