//! Writes the comparison as a document.

use crate::{
    counters::{Counted, Counters},
    lines::Log,
    peers::Peers,
    table::{self, Line},
};
use std::{collections::BTreeSet, fmt::Write};

/// Counts per operation below this are noise.
const NOISE: f64 = 0.005;

/// Everything that the document tells.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// How it was made: the command.
    pub command: &'a str,
    /// The emulator and the machine.
    pub machine: &'a str,
    /// The run on the machine itself.
    pub native: &'a Log,
    /// The run in a guest.
    pub guest: Option<&'a Log>,
    /// The comparison of both.
    pub lines: &'a [Line],
    /// L1's counters.
    pub counted: &'a [Counted],
    /// Figures of others.
    pub peers: &'a Peers,
}

/// The document.
#[must_use]
pub fn render(report: &Report<'_>) -> String {
    let mut text = String::from("# Benchmarks\n\n");
    introduction(&mut text, report);
    comparison(&mut text, report);
    counters(&mut text, report.counted);
    skipped(&mut text, report);
    text
}

// Writing to a string cannot fail; the results of `writeln!` are dropped for that reason.

fn introduction(text: &mut String, report: &Report<'_>) {
    let Report { command, machine, native, guest, .. } = report;
    let _ = writeln!(text, "Made by `{command}`; do not edit.\n");
    let _ = writeln!(
        text,
        "Costs are executed instructions per operation, by everybody involved: program, kernel and \
         hypervisor. On {machine} a tick of the TSC is one instruction; the smallest of several \
         batches is shown. Instructions are not time: TLB misses, CR3 writes and mode switches \
         count as one or none.\n"
    );
    let of = |log: &Log, name: &str| log.info.get(name).cloned().unwrap_or_else(|| "?".into());
    let mut fact = |what: &str, log: &Log| {
        let kernel = of(log, "version");
        let kernel = kernel.split(" (").next().unwrap_or_default();
        let ticks = log.calibration().map_or("nothing".into(), |ticks| ticks.to_string());
        let clock = of(log, "clocksource");
        let _ = writeln!(
            text,
            "- {what}: {kernel}, clock source {clock}; 2,000,004 instructions read as {ticks}."
        );
    };
    fact("Native", native);
    if let Some(guest) = guest {
        fact("Guest", guest);
    }
    text.push('\n');
}

fn comparison(text: &mut String, report: &Report<'_>) {
    text.push_str("## Instructions per operation\n\n");
    let titles = table::titles(report.peers);
    row(text, &titles);
    let rule: Vec<&str> =
        titles.iter().enumerate().map(|(i, _)| if i == 0 { "---" } else { "---:" }).collect();
    row(text, &rule);
    for line in report.lines {
        row(text, &table::cells(line));
    }
    let _ = writeln!(
        text,
        "\nRatios are to the native run of the same program; `!` marks a missed target. Peers were \
         measured on {} with {}; their program did the same things, but was another:\n",
        report.peers.measured, report.peers.kernel
    );
    for peer in report.peers.others() {
        let _ = writeln!(text, "- {}: {}", peer.title, peer.what);
    }
    text.push('\n');
}

fn counters(text: &mut String, counted: &[Counted]) {
    if counted.is_empty() {
        return;
    }
    text.push_str(
        "## What L1 did per operation\n\nCounted in runs of their own; what an empty run counts \
         is subtracted.\n\n",
    );
    let (plain, groups) = names(counted);
    let numbers = plain.iter().map(String::as_str);
    let titles: Vec<&str> = ["operation", "n"]
        .into_iter()
        .chain(numbers.clone())
        .chain(groups.iter().map(String::as_str))
        .collect();
    row(text, &titles);
    let rule = ["---", "---:"].into_iter().chain(numbers.map(|_| "---:"));
    row(text, &rule.chain(groups.iter().map(|_| "---")).collect::<Vec<_>>());
    for counted in counted {
        let each = |name: &String| {
            let count = counted.per_operation.get(name).copied().unwrap_or_default();
            if count.abs() < NOISE { "-".into() } else { format!("{count:.2}") }
        };
        let cells = [counted.name.clone(), counted.n.to_string()]
            .into_iter()
            .chain(plain.iter().map(each))
            .chain(groups.iter().map(|group| members(group, &counted.per_operation)));
        row(text, &cells.collect::<Vec<_>>());
    }
    text.push('\n');
}

/// Names of plain counters, and of groups of nested ones.
fn names(counted: &[Counted]) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut plain, mut groups) = (BTreeSet::new(), BTreeSet::new());
    for (name, count) in counted.iter().flat_map(|counted| &counted.per_operation) {
        if count.abs() < NOISE {
            continue;
        }
        match name.split_once('.') {
            Some((group, _)) => groups.insert(group.to_owned()),
            None => plain.insert(name.clone()),
        };
    }
    (plain, groups)
}

/// The members of a group, largest first.
fn members(group: &str, counters: &Counters) -> String {
    let own = |(name, count): (&String, &f64)| {
        let member = name.strip_prefix(group)?.strip_prefix('.')?;
        (count.abs() >= NOISE).then(|| (*count, format!("{member} {count:.2}")))
    };
    let mut members: Vec<(f64, String)> = counters.iter().filter_map(own).collect();
    members.sort_by(|a, b| b.0.total_cmp(&a.0));
    members.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", ")
}

fn skipped(text: &mut String, report: &Report<'_>) {
    let logs = [("native", Some(report.native)), ("guest", report.guest)];
    let skipped: Vec<String> = logs
        .into_iter()
        .filter_map(|(side, log)| Some((side, log?)))
        .flat_map(|(side, log)| {
            log.skipped.iter().map(move |(name, why)| format!("- {name} ({side}): {why}\n"))
        })
        .collect();
    if !skipped.is_empty() {
        text.push_str("## Not measured\n\n");
        text.extend(skipped);
    }
}

fn row<T: AsRef<str>>(text: &mut String, cells: &[T]) {
    let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATIVE: &str = "@I version Linux version 6.1.0 (x@y)\n@I calib_2M_insns_tsc 2000004\n\
        @I clocksource tsc\n@S pf_storm_2t needs 2 CPUs\n\
        @R {\"name\":\"getppid\",\"n\":9,\"min_tsc\":383,\"med_tsc\":383,\"min_ns\":1,\"med_ns\":1}\n";

    fn document(guest: Option<&str>, counted: &str) -> String {
        let (native, guest) = (Log::parse(NATIVE), guest.map(Log::parse));
        let counted = Log::parse(counted).counted;
        let peers = Peers::recorded().unwrap();
        let lines = table::compare(&native, guest.as_ref(), &peers);
        render(&Report {
            command: "bench --quick",
            machine: "an emulated machine",
            native: &native,
            guest: guest.as_ref(),
            lines: &lines,
            counted: &crate::counters::per_operation(&counted),
            peers: &peers,
        })
    }

    #[test]
    fn the_document_holds_both_runs_and_the_peers() {
        let guest = NATIVE.replace("383,\"med", "600,\"med");
        let text = document(Some(&guest), "");
        assert!(text.contains("| getppid | 383 | 600 | 1.57 ! | 1.50 | 2.60 |"), "{text}");
        assert!(text.contains("- Guest: Linux version 6.1.0, clock source tsc"), "{text}");
        assert!(text.contains("- pf_storm_2t (guest): needs 2 CPUs"), "{text}");
        assert!(!text.contains("What L1 did"), "{text}");
    }

    #[test]
    fn counters_become_columns_and_lists() {
        let counts = "@C {\"name\":\"fork_exit\",\"n\":10,\"counts\":\
            {\"exits\":25,\"by.fault\":5,\"by.irq\":20}}";
        let text = document(None, counts);
        assert!(text.contains("| operation | n | exits | by |"), "{text}");
        assert!(text.contains("| fork_exit | 10 | 2.50 | irq 2.00, fault 0.50 |"), "{text}");
    }
}
