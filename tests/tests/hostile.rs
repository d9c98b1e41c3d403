//! A guest that attacks L1 by whatever a guest can do comes to nothing, and dies of it at most.

use roost_tests::{built, folder::Folder, outcome::Ended, run::Run, tap::Report};
use std::{collections::BTreeSet, env};

/// Attacks of a run.
const COUNT: &str = "1000000";
/// With it, ten million.
const THOROUGH: &str = "ROOST_TESTS_N";

/// A run of the hostile guest. Time goes by instructions: it repeats itself exactly.
fn hostile<'a>(folder: &'a Folder, words: &str) -> Run<'a> {
    folder.run(&built::hostile()).memory("64M").flag("--icount").append(words)
}

/// No attack went wrong, the guest is itself, and L1 is sound.
fn assert_unharmed(ended: &Ended) -> Report {
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    ended.assert_powered_off();
    report
}

/// Every attack but the one that needs a typist.
#[test]
fn all_attacks() {
    let folder = Folder::new();
    let (count, limit) = match env::var_os(THOROUGH) {
        None => (COUNT.to_owned(), 1200),
        Some(_) => (format!("{COUNT}0"), 12_000),
    };
    let ended = hostile(&folder, &format!("skip=spin n={count} seed=1")).limit(limit).to_end();
    let report = assert_unharmed(&ended);
    assert!(report.skipped.is_empty(), "{report:?}");
    assert!(report.passed.len() > 60, "{report:?}");
    assert!(ended.log.matches("root check: ").count() > 10, "{}", ended.log);
}

/// Another start, on a CPU without FSGSBASE, SMEP, XSAVE and large pages of 1 GiB.
#[test]
fn another_seed_on_the_oldest_cpu() {
    let folder = Folder::new();
    let run = hostile(&folder, "skip=spin n=50000 seed=2").option("--cpu", "qemu64");
    assert_unharmed(&run.limit(600).to_end());
}

/// A guest that does not yield hinders nobody: L1 takes the key that is typed meanwhile.
#[test]
fn a_guest_that_does_not_yield() {
    let folder = Folder::new();
    // In seconds that pass here, too.
    let run = folder.run(&built::hostile()).memory("64M").append("only=spin spin=3 n=1000");
    let mut guest = run.piped();
    guest.expect("# spin.masked: spinning");
    guest.send("x");
    guest.expect("# spin.masked: done");
    let report = assert_unharmed(&guest.end());
    assert!(report.has_passed("spin.masked"), "{report:?}");
}

/// Attacks that leave the guest no way on, and what L1 says about them.
const DEATHS: &[(&str, &str)] = &[
    ("guard", "triple fault: an event while another owns the PVCS"),
    ("stack-segment", "triple fault: foreign CS or SS in supervisor mode"),
    ("code-segment", "triple fault: foreign CS or SS in supervisor mode"),
    ("garbage-root", "triple fault: an event while another owns the PVCS"),
    ("random-root", "triple fault: an event while another owns the PVCS"),
    ("root-of-code", "triple fault: an event while another owns the PVCS"),
    ("entry-anywhere", "triple fault: an event while another owns the PVCS"),
    ("no-pvcs", "triple fault: an event, and no PVCS is registered"),
    ("syscall-without-pvcs", "triple fault: ERETU, and no PVCS is registered"),
    ("fetch-from-a-device", "execution from a device's memory is not emulated"),
    ("locked-device", "this load from a device is not emulated"),
];

/// What only an emulator lets a guest do: QEMU 7.2's, others perhaps not.
const EMULATED_DEATHS: &[(&str, &str)] = &[
    ("virtual-8086", "virtual-8086 mode is not emulated"),
    ("debug-in-debug", "a debug exception within another is not emulated"),
];

#[test]
fn every_death_has_its_reason() {
    let folder = Folder::new();
    for (case, reason) in DEATHS {
        for seed in [1, 2] {
            hostile(&folder, &format!("die={case} seed={seed}")).to_end().assert_died(reason);
        }
    }
}

#[test]
fn what_an_emulator_lets_happen_ends_nobody_else() {
    let folder = Folder::new();
    for (case, reason) in EMULATED_DEATHS {
        let ended = hostile(&folder, &format!("die={case}")).to_end();
        if !ended.said.out.contains(&format!("the guest survived {case}")) {
            ended.assert_died(reason);
        }
    }
}

/// The guest lists its cases when it does not know one.
#[test]
fn no_death_is_forgotten() {
    let folder = Folder::new();
    let ended = hostile(&folder, "die=?").to_end();
    let cases = ended.said.out.lines().filter_map(|line| line.strip_prefix("#   "));
    let cases: BTreeSet<_> = cases.filter_map(|line| line.split_whitespace().next()).collect();
    let tried = DEATHS.iter().chain(EMULATED_DEATHS).map(|(case, _)| *case);
    let tried: BTreeSet<_> = tried.collect();
    assert_eq!(cases, tried);
}

/// A seed repeats a run to the last number.
#[test]
fn a_seed_repeats_itself() {
    let folder = Folder::new();
    let run = |seed| hostile(&folder, &format!("only=fuzz.user n=5000 seed={seed}")).to_end();
    let [first, again, other] = [5, 5, 6].map(|seed| run(seed).said.out);
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn wrong_words_are_named() {
    let folder = Folder::new();
    for (words, reason) in [
        ("n=many", "`n=many` is no option: "),
        ("only=pvcs,calls.nothing", "there is no attack `calls.nothing`: "),
    ] {
        let ended = hostile(&folder, words).to_end();
        assert_eq!(ended.said.status, 3, "{:?}", ended.said);
        assert!(ended.said.out.contains(&format!("Bail out! {reason}")), "{:?}", ended.said);
    }
}
