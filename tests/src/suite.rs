//! Reads what the conformance suites have in common: reports with a summary, and tables of flaws.

use crate::tap::Report;
use std::collections::BTreeSet;

/// A suite's report.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// Check by check.
    pub report: Report,
    /// Its last line: counts by rule, and measurements.
    pub summary: serde_json::Value,
}

impl Judgement {
    /// Reads a report from a console on which others may write too.
    ///
    /// # Panics
    /// It has no summary, or that is not JSON.
    #[must_use]
    pub fn parse(console: &str) -> Self {
        let line = console.lines().rfind(|line| line.starts_with('{'));
        let summary = line.unwrap_or_else(|| panic!("no summary\n{console}"));
        let summary = serde_json::from_str(summary).expect("the summary is JSON");
        Self { report: Report::parse(console), summary }
    }

    /// Judges that all checks of the plan were made, and that the summary says what the lines say.
    ///
    /// # Panics
    /// Something is not so; `console` tells more.
    pub fn assert_complete(&self, console: &str) {
        let report = &self.report;
        report.assert_complete(console);
        for (name, seen) in [
            ("passed", report.passed.len()),
            ("skipped", report.skipped.len()),
            ("failed", report.failed_names().len()),
        ] {
            assert_eq!(self.summary[name].as_u64(), Some(seen as u64), "{name}: {console}");
        }
    }

    /// What was measured under this name.
    ///
    /// # Panics
    /// Nothing was.
    #[must_use]
    pub fn measured(&self, name: &str) -> u64 {
        let value = self.summary["measured"][name].as_u64();
        value.unwrap_or_else(|| panic!("{name} was not measured: {}", self.summary))
    }
}

/// A row of a table of flaws: `| name | what is wrong | rules | red |`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Its name.
    pub name: &'static str,
    /// Checks that fail.
    pub red: BTreeSet<String>,
    /// Checks that may fail, or groups with `.*`: in parentheses, for it depends on who is faster.
    pub maybe: BTreeSet<String>,
    /// Nothing can be checked after them: a comma follows.
    pub only_first: bool,
}

impl Flaw {
    /// The rows of `table`.
    #[must_use]
    pub fn all(table: &'static str) -> Vec<Self> {
        let rows = table.lines().filter_map(|line| line.strip_prefix("| ")).skip(1);
        rows.map(Self::read).collect()
    }

    fn read(row: &'static str) -> Self {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let (red, only_first) = match cells[3].split_once(',') {
            Some((red, _)) => (red, true),
            None => (cells[3], false),
        };
        let (maybe, red): (Vec<_>, Vec<_>) =
            red.split_whitespace().partition(|name| name.starts_with('('));
        let plain = |name: &str| name.trim_matches(['(', ')']).to_owned();
        let names = |names: Vec<&str>| names.into_iter().map(plain).collect();
        Self { name: cells[0], red: names(red), maybe: names(maybe), only_first }
    }
}

/// The groups that `checks` are in, as a suite's word `only=` takes them.
pub fn groups<'a>(checks: impl IntoIterator<Item = &'a String>) -> String {
    let groups = checks.into_iter().filter_map(|name| name.split('.').next());
    groups.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_must_say_what_the_lines_say() {
        let console = "1..3\nok 1 - A-1: a.b\nok 2 - A-1: a.c # SKIP no\nnot ok 3 - A-2: d.e\n\
                       {\"passed\":1,\"skipped\":1,\"failed\":1,\"measured\":{\"x\":7}}\n";
        let judgement = Judgement::parse(console);
        judgement.assert_complete(console);
        assert_eq!(judgement.measured("x"), 7);
        let wrong = Judgement::parse(&console.replace("\"failed\":1", "\"failed\":0"));
        assert!(std::panic::catch_unwind(|| wrong.assert_complete("")).is_err());
    }

    #[test]
    fn tables_are_read() {
        let rows = Flaw::all(
            "text\n\n| flaw | what | rules | red |\n|---|---|---|---|\n\
             | a | this | R-1 | x.one y.two (z.*) |\n| b | that | R-2 | x.one, no more |\n",
        );
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (a, b) = (&rows[0], &rows[1]);
        assert_eq!((a.name, &a.red, a.only_first), ("a", &names(&["x.one", "y.two"]), false));
        assert_eq!((&a.maybe, &b.red, b.only_first), (&names(&["z.*"]), &names(&["x.one"]), true));
        assert_eq!(groups(&a.red), "x,y");
    }
}
