//! Compares the rules of the specification with those that checks name: each is checked in the
//! guest, or by a test on the host that is named here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const SPEC: &str = include_str!("../../../docs/spec/guest.md");
const FLAWS: &str = include_str!("../FLAWS.md");

/// Rules that a native guest cannot check: the file and the test that does.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("END-7", "tests/tests/tlb_model.rs", "every_flaw_is_found"),
    ("EXT-1", "tests/tests/conformance.rs", "another_major_version_is_not_used"),
    ("VER-2", "tests/tests/conformance.rs", "a_later_minor_version_is_judged_the_same"),
    ("VER-3", "roost/src/kernel.rs", "another_abi_is_refused"),
    // The shim and a stock kernel use the whole of these, and end with a check of the roots.
    ("NOTE-1", "tests/tests/guest_checks.rs", "cloud_kernel"),
    ("WIN-1", "tests/tests/guest_checks.rs", "cloud_kernel"),
    ("WIN-2", "tests/tests/guest_checks.rs", "cloud_kernel"),
    ("WIN-4", "tests/tests/guest_checks.rs", "cloud_kernel"),
    // Without the word an idle kernel enters L1 three times as often.
    ("FEAT-11", "tests/tests/smp.rs", "an_idle_guest_is_left_alone"),
    ("TIM-1", "tests/tests/smp.rs", "an_idle_guest_is_left_alone"),
    ("TIM-2", "tests/tests/smp.rs", "an_idle_guest_is_left_alone"),
    ("NOTE-2", "shadow-mmu/src/model/rules.rs", "a_note_gives_what_the_store_gives"),
    ("NOTE-3", "shadow-mmu/src/model/loom/lost.rs", "lost_notes_reach_the_tables_below"),
    ("NOTE-4", "shadow-mmu/src/model/rules.rs", "an_unpinned_root_gives_its_tables_back"),
    ("NOTE-5", "shadow-mmu/src/model/random.rs", "notes_mode_never_maps_what_the_guest_does_not"),
    ("WIN-3", "pv-abi/src/ext.rs", "window_frames_cover_themselves"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The rule between asterisks at the start of a list item or of a table's row.
fn rule(line: &str) -> Option<&str> {
    let text = line.strip_prefix("- **").or_else(|| line.strip_prefix("| **"))?;
    let id = text.split_once("**")?.0;
    let (name, number) = id.rsplit_once('-')?;
    let is_id = name.bytes().all(|byte| byte.is_ascii_uppercase())
        && number.bytes().all(|byte| byte.is_ascii_digit());
    is_id.then_some(id)
}

fn specified() -> BTreeSet<&'static str> {
    let ids: Vec<_> = SPEC.lines().filter_map(rule).collect();
    let set: BTreeSet<_> = ids.iter().copied().collect();
    assert_eq!(ids.len(), set.len(), "each id names one rule");
    set
}

/// Names of checks with the rules that they name; deaths are of a group `die`.
fn checks() -> BTreeMap<String, Vec<String>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = fs::read_dir(source.join("checks")).unwrap().map(|entry| entry.unwrap().path());
    let mut found = BTreeMap::new();
    for file in files.chain([source.join("die.rs")]) {
        let text = fs::read_to_string(file).unwrap();
        let group = text.split_once("name: \"").and_then(|(_, rest)| rest.split('"').next());
        // A check is `check("name", "RULE RULE", function)`, a death `death(..)` likewise.
        for (call, group) in [("check(", group), ("death(", Some("die"))] {
            for entry in
                text.split(call).skip(1).filter(|entry| entry.trim_start().starts_with('"'))
            {
                let mut strings = entry.split('"').skip(1).step_by(2);
                let (name, rules) = (strings.next().unwrap(), strings.next().unwrap());
                // What ends each group has a name alone.
                let name = group.map_or(name.to_owned(), |group| format!("{group}.{name}"));
                let rules = rules.split(' ').map(str::to_owned).collect();
                assert_eq!(found.insert(name.clone(), rules), None, "{name} is there twice");
            }
        }
    }
    found
}

#[test]
fn every_rule_has_a_test() {
    let (specified, checks) = (specified(), checks());
    let checked: BTreeSet<&str> = checks.values().flatten().map(String::as_str).collect();
    let elsewhere: BTreeSet<_> = ELSEWHERE.iter().map(|(rule, ..)| *rule).collect();
    assert!(specified.len() > 150 && checks.len() > 250, "rules and checks are found");
    let unknown: Vec<_> = checked.union(&elsewhere).filter(|id| !specified.contains(*id)).collect();
    assert!(unknown.is_empty(), "not specified: {unknown:?}");
    let covered: BTreeSet<_> = checked.union(&elsewhere).copied().collect();
    let missing: Vec<_> = specified.difference(&covered).collect();
    assert!(missing.is_empty(), "rules without a test: {missing:?}");
    let needless: Vec<_> = elsewhere.intersection(&checked).collect();
    assert!(needless.is_empty(), "tested elsewhere, but checked here: {needless:?}");
    println!(
        "{} rules: {} by {} checks, {} by tests on the host",
        specified.len(),
        checked.len(),
        checks.len(),
        elsewhere.len()
    );
}

#[test]
fn tests_elsewhere_exist() {
    for (rule, file, test) in ELSEWHERE {
        let text = fs::read_to_string(root().join(file)).unwrap();
        assert!(text.contains(&format!("fn {test}(")), "{rule}: {file} has no test {test}");
    }
}

/// `| name | what is wrong | rules | red |`
#[test]
fn flaws_name_rules_and_checks() {
    let (specified, checks) = (specified(), checks());
    let rows = FLAWS.lines().filter_map(|line| line.strip_prefix("| ")).skip(1);
    for row in rows {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let (flaw, rules, red) = (cells[0], cells[2], cells[3]);
        for rule in rules.split(' ') {
            assert!(specified.contains(rule), "{flaw}: {rule} is not specified");
            let named = red
                .split(' ')
                .any(|check| checks.get(check).is_some_and(|of| of.iter().any(|id| id == rule)));
            assert!(named, "{flaw}: no check that fails names {rule}");
        }
        for check in red.split(' ') {
            assert!(checks.contains_key(check), "{flaw}: there is no check {check}");
        }
    }
}
