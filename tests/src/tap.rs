//! Reads and judges results in the Test Anything Protocol.

use std::collections::BTreeSet;

/// A report of a guest program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Checks that the plan promises; `None` without a plan.
    planned: Option<usize>,
    /// Names of the checks that passed.
    pub passed: Vec<String>,
    /// Checks that were skipped, as printed.
    pub skipped: Vec<String>,
    /// Checks that failed, with the remarks after them.
    failed: Vec<String>,
    /// The reason not to go on.
    bail_out: Option<String>,
}

impl Report {
    /// Reads a report from a console on which others may write too.
    #[must_use]
    pub fn parse(console: &str) -> Self {
        let mut report = Self::default();
        let mut after_failure = false;
        for line in console.lines().map(str::trim_end) {
            if let Some(remark) = line.strip_prefix('#') {
                if let Some(failed) = report.failed.last_mut().filter(|_| after_failure) {
                    failed.push_str(remark);
                }
                continue;
            }
            after_failure = line.starts_with("not ok ");
            report.take(line);
        }
        report
    }

    fn take(&mut self, line: &str) {
        if let Some(reason) = line.strip_prefix("Bail out!") {
            self.bail_out = Some(reason.trim().into());
        } else if let Some(plan) = line.strip_prefix("1..") {
            self.planned = plan.parse().ok();
        } else if let Some(result) = line.strip_prefix("not ok ") {
            self.failed.push(name(result).into());
        } else if let Some(result) = line.strip_prefix("ok ") {
            match result.contains("# SKIP") {
                true => self.skipped.push(name(result).into()),
                false => self.passed.push(name(result).split(" #").next().unwrap_or("").into()),
            }
        }
    }

    /// Judges that all checks of the plan were made, that some passed and none failed.
    ///
    /// # Panics
    /// Something is not so; `console` tells more.
    pub fn assert_passed(&self, console: &str) {
        assert_eq!(self.bail_out, None, "{console}");
        assert!(self.failed.is_empty(), "failed: {:#?}\n{console}", self.failed);
        let seen = self.passed.len() + self.skipped.len();
        assert_eq!(self.planned, Some(seen), "not all checks were made\n{console}");
        assert!(!self.passed.is_empty(), "nothing was checked\n{console}");
    }

    /// Judges that all checks of the plan were made, whatever came of them.
    ///
    /// # Panics
    /// Something is not so; `console` tells more.
    pub fn assert_complete(&self, console: &str) {
        assert_eq!(self.bail_out, None, "{console}");
        let seen = self.passed.len() + self.skipped.len() + self.failed.len();
        assert_eq!(self.planned, Some(seen), "not all checks were made\n{console}");
    }

    /// Names of the checks that failed.
    #[must_use]
    pub fn failed_names(&self) -> BTreeSet<String> {
        let words = self.failed.iter().map(|failed| failed.split(' ').next().unwrap_or(""));
        words.map(str::to_owned).collect()
    }

    /// Names of the checks that were skipped.
    #[must_use]
    pub fn skipped_names(&self) -> BTreeSet<String> {
        let words = self.skipped.iter().map(|skipped| skipped.split(' ').next().unwrap_or(""));
        words.map(str::to_owned).collect()
    }

    /// Whether a check of this name passed.
    #[must_use]
    pub fn has_passed(&self, name: &str) -> bool {
        self.passed.iter().any(|passed| passed == name)
    }
}

/// What follows number and hyphen, without the rules that a conformance suite names there.
fn name(result: &str) -> &str {
    let text = result.split_once(" - ").map_or(result, |(_, text)| text);
    let is_rules = |words: &str| words.bytes().all(|byte| !byte.is_ascii_lowercase());
    match text.split_once(": ") {
        Some((rules, name)) if is_rules(rules) => name,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_sorted_by_kind() {
        let text = "boot\r\n1..3\r\nok 1 - MSR-2 HC-1: a # ms=3\r\n# hint\r\nnot ok 2 - b: bad\r\n\
                    #   found 1\r\nok 3 - c # SKIP none\r\n# not of b\r\n";
        let report = Report::parse(text);
        assert_eq!(report.passed, ["a"]);
        assert_eq!(report.skipped, ["c # SKIP none"]);
        assert_eq!(report.failed, ["b: bad   found 1"]);
        assert_eq!((report.planned, report.bail_out), (Some(3), None));
    }

    #[test]
    fn a_complete_report_passes() {
        let report = Report::parse("ok 1 - a\nok 2 - b # SKIP x\n1..2\n");
        report.assert_passed("");
        assert!(report.has_passed("a") && !report.has_passed("b"));
    }

    #[test]
    #[should_panic(expected = "not all checks were made")]
    fn a_cut_report_fails() {
        Report::parse("1..2\nok 1 - a\n").assert_passed("");
    }

    #[test]
    #[should_panic(expected = "nothing was checked")]
    fn a_report_of_skips_fails() {
        Report::parse("1..1\nok 1 - a # SKIP x\n").assert_passed("");
    }
}
