//! Compares the rules of the specification with those that checks name: each is checked, or it is
//! said here why not.

use std::{collections::BTreeSet, fs, path::Path};

const SPEC: &str = include_str!("../../../docs/spec/l0-l1.md");

/// Rules that no check names, and why.
const NOT_CHECKED: &[(&str, &str)] = &[
    ("L0-GEN-3", "needs a second L1"),
    ("L0-OP-4", "no bound is named; `call_list` goes on after AGAIN"),
    ("L0-STAT-2", "an INTERNAL failure cannot be caused"),
    ("L0-MAP-9", "memory that L1 gives back is not this ABI's"),
    ("L0-PRIV-9", "an access of L1 may stop L1"),
    ("L0-PRIV-10", "about L1 alone"),
    ("L0-PRIV-11", "says what it is worth"),
    ("L0-RUN-10", "L0's choice; every check bears it"),
    ("L0-KICK-4", "a spurious kick cannot be caused"),
    ("L0-APIC-6", "says what there is not"),
    ("L0-CPUID-5", "about every feature of the CPU"),
    ("L0-WD-4", "what does not become wider cannot be seen from L1 alone"),
    ("L0-RST-2", "needs a reset of L1's machine"),
    ("L0-RST-4", "after L1's end"),
    ("L0-MIG-1", "needs another host"),
    ("L0-MIG-2", "needs another host"),
    ("L0-MIG-3", "needs another host"),
    ("L0-MIG-4", "needs another host"),
    ("L0-UPG-1", "needs another L0"),
    ("L0-UPG-2", "needs another L0"),
    ("L0-SEC-2", "after L1's end; within its life the TLB contract's checks"),
    ("L0-SEC-6", "side channels are not measured"),
    ("L0-SEC-8", "L1's duty"),
    ("L0-SEC-9", "L1's duty"),
    ("L0-SEC-10", "L1's duty"),
    ("L0-SEC-11", "L1's duty"),
];

/// The rule that `text` starts with.
fn rule(text: &str) -> Option<&str> {
    let end = text.find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '-'));
    let id = &text[..end.unwrap_or(text.len())];
    let number = id.strip_prefix("L0-")?.rsplit_once('-')?.1;
    number.bytes().all(|digit| digit.is_ascii_digit()).then_some(id)
}

fn specified() -> BTreeSet<&'static str> {
    SPEC.lines().filter_map(|line| rule(line.strip_prefix("- **")?)).collect()
}

/// Rules in the tables of checks.
fn checked() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/checks");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let text: String = files.map(|file| fs::read_to_string(file).unwrap()).collect();
    // A check is `check("name", "RULE RULE", function)`.
    let lists = text.split("check(").skip(1).filter_map(|call| call.split('"').nth(3));
    let ids = lists.flat_map(|list| list.split(' ')).filter_map(rule);
    ids.map(str::to_owned).collect()
}

#[test]
fn every_rule_is_checked_or_excused() {
    let (specified, checked) = (specified(), checked());
    assert!(specified.len() > 150 && checked.len() > 100, "the rules are found");
    let excused: BTreeSet<_> = NOT_CHECKED.iter().map(|(rule, _)| *rule).collect();
    let unknown: Vec<_> =
        checked.iter().filter(|rule| !specified.contains(rule.as_str())).collect();
    assert!(unknown.is_empty(), "checks name rules that are not specified: {unknown:?}");
    let missing: Vec<_> = specified
        .iter()
        .filter(|rule| !checked.contains(**rule) && !excused.contains(**rule))
        .collect();
    assert!(missing.is_empty(), "rules without a check: {missing:?}");
    let needless: Vec<_> = excused
        .iter()
        .filter(|rule| checked.contains(**rule) || !specified.contains(**rule))
        .collect();
    assert!(needless.is_empty(), "excused, but checked or not specified: {needless:?}");
}
