//! Writes what the image measured as a document.

use crate::reasons::{Account, Class, TARGETS};
use anyhow::{Context, Result};
use pv_abi::ext::counter::Reason;
use serde::Deserialize;
use std::fmt::Write;

/// The image's line.
#[derive(Debug, Deserialize)]
struct Measured {
    rounds: u32,
    operations: Vec<Operation>,
}

#[derive(Debug, Deserialize)]
struct Operation {
    name: String,
    reason: String,
    median: u64,
    worst: u64,
}

const INTRODUCTION: &str = "\
# Exits

What each kind of exit costs, and how it is served. `make exits` measures and writes this page: a native guest
(`bench/exits`) takes each operation {rounds} times in QEMU with `--icount` on one CPU, where a tick of the TSC
is an instruction. Counted are the instructions of guest, switcher and L1 from the operation to the first
instruction behind it, or of the handler that it leads to; those of the emulated hardware are not. All of L1
runs with interrupts off. *Fast* exits are bounded, work on the vCPU's own state and its guest's memory, and wait
for nobody; *slow* ones decode instructions, take locks that others hold, make tables, or wait.
";

/// The document of what the image printed.
///
/// # Errors
/// There is no such line in it.
pub fn render(input: &str) -> Result<String> {
    let line = input.lines().find(|line| line.starts_with('{')).context("nothing was measured")?;
    let measured: Measured = serde_json::from_str(line).context("the line is damaged")?;
    let mut text = INTRODUCTION.replace("{rounds}", &measured.rounds.to_string());
    let all = &measured.operations;
    exits(&mut text, all);
    direct(&mut text, all);
    targets(&mut text, all);
    Ok(text)
}

fn exits(text: &mut String, all: &[Operation]) {
    text.push_str(
        "\n| exit | class | why | operation | median | worst |\n|---|---|---|---|---:|---:|\n",
    );
    for (reason, name) in Reason::ALL {
        let account = Account::of(reason);
        let class = match account.class {
            Class::Fast => "fast",
            Class::Slow => "slow",
        };
        let mut head = format!("`{name}` | {class} | {}", account.why);
        if let Some(why) = account.unmeasured {
            let _ = writeln!(text, "| {head} | not measured: {why} | | |");
        }
        for operation in all.iter().filter(|operation| operation.reason == name) {
            row(text, &head, operation);
            head = " | |".into();
        }
    }
}

fn row(text: &mut String, head: &str, operation: &Operation) {
    let Operation { name, median, worst, .. } = operation;
    let _ = writeln!(text, "| {head} | {} | {median} | {worst} |", name.replace('_', " "));
}

fn direct(text: &mut String, all: &[Operation]) {
    text.push_str("\nSwitches between the guest's modes that do not enter L1:\n\n");
    text.push_str("| switch | median | worst |\n|---|---:|---:|\n");
    for Operation { name, median, worst, .. } in all.iter().filter(|one| one.reason.is_empty()) {
        let _ = writeln!(text, "| {} | {median} | {worst} |", name.replace('_', " "));
    }
}

fn targets(text: &mut String, all: &[Operation]) {
    text.push_str("\n| operation | target | median |\n|---|---:|---:|\n");
    for (target, most) in TARGETS {
        let found = all.iter().find(|operation| operation.name == *target);
        let median = found.map_or_else(|| "-".into(), |operation| operation.median.to_string());
        let _ = writeln!(text, "| {} | {most} | {median} |", target.replace('_', " "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page that is checked in.
    const PAGE: &str = include_str!("../../../docs/exits.md");

    #[test]
    fn every_reason_is_there() {
        for (reason, name) in Reason::ALL {
            let rows: Vec<_> =
                PAGE.lines().filter(|row| row.starts_with(&format!("| `{name}` |"))).collect();
            let [row] = rows.as_slice() else { panic!("{name}: {rows:?}") };
            let account = Account::of(reason);
            assert!(row.contains(account.why), "{row}");
            assert_eq!(row.contains("not measured"), account.unmeasured.is_some(), "{row}");
        }
    }

    #[test]
    fn operations_of_an_exit_stand_together() {
        let line = r#"{"rounds":3,"operations":[
            {"name":"a_b","reason":"halt","median":5,"worst":7},
            {"name":"c","reason":"","median":1,"worst":2},
            {"name":"d","reason":"halt","median":8,"worst":9}]}"#;
        let text = render(&format!("L1 says\n{}\n", line.replace('\n', ""))).unwrap();
        assert!(text.contains("| waits | a b | 5 | 7 |\n|  | | | d | 8 | 9 |\n"), "{text}");
        assert!(text.contains("| c | 1 | 2 |\n"), "{text}");
        assert!(text.contains("takes each operation 3 times"), "{text}");
    }

    #[test]
    fn other_input_is_refused() {
        assert!(render("L1 says\n").is_err());
        assert!(render("{\"rounds\":3}").is_err());
    }
}
