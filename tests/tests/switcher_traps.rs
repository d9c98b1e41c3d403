//! A breakpoint and an NMI at every instruction of the switcher: the guest's registers, flags and
//! memory come through, on every way in and out.

use roost_tests::{built, folder::Folder, suite::Judgement};
use serde_json::Value;
use std::collections::BTreeSet;

/// How often every way is gone, unless [`roost_tests::times`] says otherwise.
const ROUNDS: u64 = 4000;

/// Vectors whose stubs nothing reaches here: on this emulator, from a guest, and with what L1 may send
/// itself without harm.
const UNREACHED: &[(u8, &str)] = &[
    (7, "#NM: CR0.TS and CR0.EM are clear"),
    (9, "no exception any more"),
    (10, "#TS: there are no tasks, and NT is masked"),
    (15, "no exception"),
    (17, "#AC: the emulator does not raise it"),
    (19, "#XM: neither"),
    (20, "#VE is for guests of VMX"),
    (21, "#CP: CET is off"),
    (22, "no exception"),
    (23, "no exception"),
    (24, "no exception"),
    (25, "no exception"),
    (26, "no exception"),
    (27, "no exception"),
    (28, "#HV is for guests of SEV-SNP"),
    (29, "#VC is for guests of SEV-ES"),
    (30, "#SX: INIT is not redirected"),
    (31, "no exception"),
    (255, "the APIC's spurious interrupt, which must not be ended"),
];

/// Offset in the text, and the vector in whose stub that is.
type Place = (u64, Option<u8>);

/// What L1 tells of a run.
struct Done {
    line: Value,
}

impl Done {
    fn parse(log: &str) -> Self {
        let line = log.lines().rev().find_map(|line| line.strip_prefix("@traps "));
        let line = line.unwrap_or_else(|| panic!("no traps were set: {log}"));
        Self { line: serde_json::from_str(line).expect("JSON") }
    }

    fn count(&self, name: &str) -> u64 {
        self.line[name].as_u64().unwrap_or_else(|| panic!("no {name}: {}", self.line))
    }

    fn places(&self, name: &str) -> BTreeSet<Place> {
        let list = self.line[name].as_array().unwrap_or_else(|| panic!("no {name}: {}", self.line));
        let place = |place: &Value| {
            let vector = place[1].as_u64().and_then(|vector| vector.try_into().ok());
            (place[0].as_u64().expect("an offset"), vector)
        };
        list.iter().map(place).collect()
    }
}

/// All ways on QEMU's CPU model `cpu`, with or without page-table isolation, with registers compared each
/// time.
fn run([cpu, pti]: [&str; 2]) -> Done {
    let folder = Folder::new();
    let rounds = roost_tests::times().map_or(ROUNDS, |times| times.parse().expect("a number"));
    let words = format!("ways={rounds} roost.switcher-traps=on");
    let run = folder.run(&built::conformance()).images(built::traps()).memory("64M");
    let run = run.option("--cpu", cpu).option("--pti", pti);
    let ended = run.append(&words).limit(600).to_end();
    let judgement = Judgement::parse(&ended.said.out);
    judgement.report.assert_passed(&ended.said.out);
    judgement.assert_complete(&ended.said.out);
    assert!(judgement.report.passed.len() > 25, "{}", ended.said.out);
    ended.assert_powered_off();
    let done = Done::parse(&ended.log);
    println!("{cpu}, isolation {pti}: {}", done.line);
    assert_eq!(done.count("strange"), 0, "a #DB where none was asked for: {}", done.line);
    // Something happened, of each kind, and the NMIs came where they should.
    assert!(done.count("instructions") > 900 && done.count("left_out") < 150, "{}", done.line);
    assert!(done.count("breakpoints") > 2 * done.count("instructions"), "{}", done.line);
    assert!(done.count("nmi_exits") > 100, "{}", done.line);
    assert!(done.count("nmis") > 100 * done.count("nmis_elsewhere"), "{}", done.line);
    done
}

/// With FSGSBASE and without: either way has system calls of its own.
#[test]
fn every_instruction_of_the_switcher_can_be_interrupted() {
    let runs = [["max", "on"], ["qemu64", "on"]].map(run);
    for name in ["no_breakpoint", "no_nmi"] {
        let [first, second] = runs.each_ref().map(|run| run.places(name));
        let missed: BTreeSet<_> = first.intersection(&second).copied().collect();
        let stubs: BTreeSet<_> = missed.iter().filter_map(|(_, vector)| *vector).collect();
        let unreached: BTreeSet<_> = UNREACHED.iter().map(|(vector, _)| *vector).collect();
        let other: Vec<_> = missed
            .iter()
            .filter(|(_, vector)| vector.is_none_or(|vector| !unreached.contains(&vector)))
            .collect();
        assert!(other.is_empty(), "{name}: at these offsets of the text: {other:?}");
        let needless: Vec<_> = unreached.difference(&stubs).collect();
        assert!(needless.is_empty(), "{name}: reached, but on the list: {needless:?}");
        // Each CPU has one of the two, and what they have in common is reached on both.
        assert!(!first.is_empty() && !second.is_empty() && first != second);
    }
}

/// What interrupts the switcher then finds L1 on the guest's root.
#[test]
fn so_they_can_without_isolation() {
    run(["max", "off"]);
}

/// L1 as it is shipped sets no traps.
#[test]
fn the_usual_image_has_no_traps() {
    let folder = Folder::new();
    let run = folder.run(&built::conformance()).memory("64M");
    let ended = run.append("ways=2 roost.switcher-traps=on").to_end();
    Judgement::parse(&ended.said.out).report.assert_passed(&ended.said.out);
    assert!(!ended.log.contains("@traps"), "{}", ended.log);
}
