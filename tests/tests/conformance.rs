//! The conformance suite passes on L1 with several CPU models, dies as it should, and finds the
//! rules that a broken L1 breaks.

use roost_tests::{
    built,
    folder::Folder,
    run::Run,
    suite::{Flaw, Judgement, groups},
    tap::Report,
};
use std::collections::BTreeSet;

/// A run of the suite. Some checks are about time: where it goes by instructions, a busy host does
/// not matter.
fn suite<'a>(folder: &'a Folder, words: &str) -> Run<'a> {
    with_two_vcpus(folder, words).flag("--icount")
}

/// The same without that.
fn with_two_vcpus<'a>(folder: &'a Folder, words: &str) -> Run<'a> {
    folder.run(&built::conformance()).memory("64M").option("--vcpus", "2").append(words)
}

/// The same on an L1 that breaks a rule, or is otherwise different.
fn suite_on<'a>(flaw: &str, folder: &'a Folder, words: &str) -> Run<'a> {
    // Some flaws have the suite wait for what does not come.
    suite(folder, &format!("roost.abi-flaw={flaw} {words}")).images(built::flaws()).limit(300)
}

/// Adds the disks and network cards that some checks need.
fn with_devices<'a>(folder: &Folder, run: Run<'a>) -> Run<'a> {
    folder.file("disk.img", &[0; 1 << 20]);
    folder.file("fixed.img", &[0; 1 << 20]);
    let run = run.option("--disk", "disk.img").option("--disk", "fixed.img,ro");
    let run = run.option("--net", "lan").option("--net", "lan");
    ["entropy", "console", "vsock=3"].iter().fold(run, |run, device| run.option("--device", device))
}

/// Every check passes on QEMU's CPU model `cpu`; the counts by rule.
fn passes(cpu: &str) -> serde_json::Value {
    let folder = Folder::new();
    let ended = with_devices(&folder, suite(&folder, "")).option("--cpu", cpu).to_end();
    let judgement = Judgement::parse(&ended.said.out);
    judgement.report.assert_passed(&ended.said.out);
    judgement.assert_complete(&ended.said.out);
    ended.assert_powered_off();
    let letters = ended.said.out.lines().find(|line| line.starts_with("# ~"));
    assert_eq!(letters.map(str::len), Some(3002), "all that was written to the virtio console");
    assert!(ended.said.out.contains("# the console says this\n"), "{}", ended.said.out);
    assert!(!ended.said.out.contains("nobody may read"), "{}", ended.said.out);
    // It asks for a check of the roots after each group, L1 makes one in the end.
    assert!(ended.log.matches("root check: ").count() > 10, "{}", ended.log);
    let rules = judgement.summary["rules"].as_object().expect("counts by rule");
    assert!(rules.len() > 140, "{rules:?}");
    assert!(rules.values().all(|counts| counts["failed"] == 0), "{rules:?}");
    judgement.summary["rules"].clone()
}

#[test]
fn everything_that_the_emulator_has() {
    let rules = passes("max");
    // No rule is left to the checks that this machine skips.
    // That of disks that fail is for `disk_errors.rs`.
    let rules = rules.as_object().expect("counts by rule").iter();
    for (rule, counts) in rules.filter(|(rule, _)| *rule != "BLK-5") {
        assert!(counts["passed"].as_u64() > Some(0), "{rule}: {counts}");
    }
}

/// Without FSGSBASE, SMEP, SMAP, XSAVE and 1G pages.
#[test]
fn the_oldest_64_bit_cpu() {
    passes("qemu64");
}

#[test]
fn an_intel_server() {
    passes("Skylake-Server");
}

/// The second vCPU has a CPU of its own, and both run at the same time.
#[test]
fn two_processors() {
    let folder = Folder::new();
    let run = with_two_vcpus(&folder, "patient only=smp,pvcs,flush,tables");
    let ended = run.option("--cpus", "2").limit(300).to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    ended.assert_powered_off();
    assert!(report.has_passed("smp.own_registers") && report.skipped.is_empty(), "{report:?}");
}

/// What needs a second vCPU is skipped where there is none, and the rest passes.
#[test]
fn one_vcpu() {
    let folder = Folder::new();
    let run = folder.run(&built::conformance()).memory("64M").flag("--icount");
    let ended = run.append("only=start,detect,apic,extension,smp").to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    ended.assert_powered_off();
    let skipped = report.skipped.iter().filter(|skipped| skipped.contains("has one vCPU"));
    assert!(skipped.count() > 15 && report.has_passed("smp.steal_time_refused"), "{report:?}");
}

/// Ways to break the ABI, and what L1 says about them.
const DEATHS: &[(&str, &str)] = &[
    ("event-without-pvcs", "triple fault: an event, and no PVCS is registered"),
    ("eretu-without-pvcs", "triple fault: ERETU, and no PVCS is registered"),
    ("event-without-pvcs-elsewhere", "triple fault: an event, and no PVCS is registered"),
    ("pvcs-without-ram", "triple fault: an event, and no PVCS is registered"),
    ("event-while-owned", "triple fault: an event while another owns the PVCS"),
    ("event-while-an-nmi-is-recorded", "triple fault: an event while another owns the PVCS"),
    ("foreign-code-segment", "triple fault: foreign CS or SS in supervisor mode"),
    ("entry-nowhere", "triple fault: an event while another owns the PVCS"),
    ("stack-nowhere", "triple fault: an event while another owns the PVCS"),
    ("tables-nowhere", "triple fault: an event while another owns the PVCS"),
    ("jump-to-a-device", "execution from a device's memory is not emulated"),
    ("device-read-modify-write", "this load from a device is not emulated"),
    ("device-string", "this kind of access to a device is not emulated"),
    ("device-vector", "a device access of this size is not emulated"),
    ("device-across-a-page", "this kind of access to a device is not emulated"),
    ("panic", "its kernel panicked: the test asked for it"),
];

/// Ends that are no deaths, with the tool's status and a line of it.
const ENDS: &[(&str, i32, &str)] = &[
    ("power-off", 0, ""),
    ("power-off-elsewhere", 0, ""),
    ("restart", 0, "roost: the guest asked for a restart"),
    ("boot-failed", 3, "roost: the guest could not be started"),
];

#[test]
fn every_death_has_its_reason() {
    let folder = Folder::new();
    for (case, reason) in DEATHS {
        suite(&folder, &format!("die={case}")).to_end().assert_died(reason);
    }
}

#[test]
fn other_ends_are_told() {
    let folder = Folder::new();
    for (case, status, line) in ENDS {
        let ended = suite(&folder, &format!("die={case}")).to_end();
        assert_eq!(ended.said.status, *status, "{:?}", ended.said);
        assert!(ended.said.err.contains(line), "{:?}", ended.said);
        assert_eq!(ended.said.err.is_empty(), line.is_empty(), "{:?}", ended.said);
        ended.assert_l1_is_sound();
    }
}

/// The guest lists its cases when it does not know one.
#[test]
fn no_death_is_forgotten() {
    let folder = Folder::new();
    let ended = suite(&folder, "die=?").to_end();
    let cases = ended.said.out.lines().filter_map(|line| line.strip_prefix("#   "));
    let cases: BTreeSet<_> = cases.filter_map(|line| line.split_whitespace().next()).collect();
    let deaths = DEATHS.iter().map(|(case, _)| *case);
    let tried: BTreeSet<_> = deaths.chain(ENDS.iter().map(|(case, ..)| *case)).collect();
    assert_eq!(cases, tried);
}

#[test]
fn wrong_words_are_named() {
    let folder = Folder::new();
    for (words, reason) in [
        ("onyl=msr", "`onyl=msr` is no option: "),
        ("only=msr,apic.nothing", "there is no check `apic.nothing`: "),
    ] {
        let ended = suite(&folder, words).to_end();
        assert_eq!(ended.said.status, 3, "{:?}", ended.said);
        assert!(ended.said.out.contains(&format!("Bail out! {reason}")), "{:?}", ended.said);
    }
}

/// Without the extension what it has is skipped, and the rest passes.
fn assert_only_part_1_is_judged(flaw: &str, reason: &str) {
    let folder = Folder::new();
    let ended = suite_on(flaw, &folder, "").to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    ended.assert_powered_off();
    let skipped = report.skipped.iter().filter(|skipped| skipped.contains(reason));
    assert!(skipped.count() > 60 && report.passed.len() > 200, "{}", ended.said.out);
}

#[test]
fn without_the_extension_the_rest_is_judged() {
    assert_only_part_1_is_judged("no-extension", "this hypervisor has no extension");
}

#[test]
fn another_major_version_is_not_used() {
    assert_only_part_1_is_judged("major-version", "a major version that is not known here");
}

#[test]
fn a_later_minor_version_is_judged_the_same() {
    let folder = Folder::new();
    let ended = suite_on("minor-version", &folder, "").to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    assert!(report.has_passed("detect.roost_leaves") && report.has_passed("start.version"));
    assert!(report.skipped.iter().all(|skipped| !skipped.contains("extension")), "{report:?}");
}

/// What the hypervisor counts need not be judged.
#[test]
fn costs_are_skipped_if_asked() {
    let folder = Folder::new();
    let ended = suite(&folder, "any-cost only=fill,msr").to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    let skipped = |name: &str| report.skipped.iter().any(|skipped| skipped.starts_with(name));
    assert!(skipped("fill.one_page ") && skipped("msr.cost "), "{report:?}");
    assert!(report.has_passed("fill.only_what_was_used") && report.has_passed("msr.star"));
}

/// With [`roost_tests::times`] set, each broken L1 is given everything, not only the groups that find
/// the flaw.
const FLAWS: &str = include_str!("../conformance/FLAWS.md");
/// What is different in L1 without breaking a rule.
/// The last two are ones that the suite cannot see so (`powercut.rs`, `pti.rs`).
const NO_FLAWS: [&str; 5] =
    ["minor-version", "major-version", "no-extension", "flush-ignored", "stale-kept"];

/// Each flaw turns red what the table says and nothing else. Every second row, from `first` on.
fn broken_hypervisors_fail_where_they_should(first: usize) {
    let rows = Flaw::all(FLAWS);
    assert!(rows.len() > 40, "the table is found");
    for Flaw { name: flaw, red, .. } in rows.into_iter().skip(first).step_by(2) {
        let folder = Folder::new();
        let (deaths, red): (BTreeSet<_>, BTreeSet<_>) =
            red.into_iter().partition(|check| check.starts_with("die."));
        for death in &deaths {
            let case = death.trim_start_matches("die.");
            let ended = suite_on(flaw, &folder, &format!("die={case}")).to_end();
            let survived = format!("Bail out! the guest survived {case}");
            assert!(ended.said.out.contains(&survived), "{flaw}: {:?}", ended.said);
        }
        let words = match roost_tests::times() {
            None if red.is_empty() => continue,
            None => format!("only={}", groups(&red)),
            Some(_) => String::new(),
        };
        let run = suite_on(flaw, &folder, &words);
        let of_device = |check: &String| {
            ["disk.", "card.", "entropy.", "sockets."].iter().any(|group| check.starts_with(group))
        };
        let run = if red.iter().any(of_device) { with_devices(&folder, run) } else { run };
        let ended = run.to_end();
        let report = Report::parse(&ended.said.out);
        report.assert_complete(&ended.said.out);
        assert_eq!(report.failed_names(), red, "{flaw}: {}", ended.said.out);
        assert_eq!(ended.said.status, if red.is_empty() { 0 } else { 3 }, "{flaw}");
    }
}

#[test]
fn broken_hypervisors_fail_where_they_should_1() {
    broken_hypervisors_fail_where_they_should(0);
}

#[test]
fn broken_hypervisors_fail_where_they_should_2() {
    broken_hypervisors_fail_where_they_should(1);
}

/// L1 lists its flaws when it does not know one.
#[test]
fn no_flaw_is_forgotten() {
    let folder = Folder::new();
    let ended = suite_on("?", &folder, "").to_end();
    assert_eq!(ended.said.status, 4);
    let (_, names) = ended.said.err.split_once("no such flaw; take one of: ").expect("a list");
    let names: Vec<_> = names.lines().next().unwrap_or_default().split(", ").collect();
    let rows: Vec<_> = Flaw::all(FLAWS).into_iter().map(|flaw| flaw.name).chain(NO_FLAWS).collect();
    assert_eq!(names, rows);
}

/// L1 as it is shipped knows no flaws.
#[test]
fn the_usual_image_is_not_broken() {
    let folder = Folder::new();
    let ended = suite(&folder, "only=start roost.abi-flaw=start-register").to_end();
    Report::parse(&ended.said.out).assert_passed(&ended.said.out);
}
