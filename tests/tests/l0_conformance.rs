//! The conformance suite of an L0 on the reference L0, with the whole chain emulated.

use roost_tests::{folder::Folder, outcome::Said};
use std::{collections::BTreeSet, path::Path, process::Command, time::Duration};

/// The whole suite takes two minutes on a machine that has nothing else to do.
const LIMIT: Duration = Duration::from_secs(900);

/// Checks that the reference fails, and why. One that it passes must go from here.
const DEVIATIONS: [(&str, &str); 3] = [
    ("call.string_output", "KVM does not tell an OUTS of one element from an OUT"),
    ("registers.refused_general", "addresses are looked at as with five levels of tables"),
    ("registers.refused_special", "so are bases, and CS with both L and D is taken"),
];

/// What the suite reported.
#[derive(Debug)]
struct Report {
    said: Said,
    passed: BTreeSet<String>,
    skipped: BTreeSet<String>,
    failed: BTreeSet<String>,
    /// Its last line.
    summary: serde_json::Value,
}

impl Report {
    /// Runs the suite with options of `run.sh` and words of its command line.
    fn of(arguments: &[&str]) -> Self {
        let folder = Folder::new();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("l0-conformance/run.sh");
        let mut command = Command::new(script);
        command.args(["--timeout", "800"]).args(arguments).env("TMPDIR", folder.path(""));
        Self::read(Said::by(command, LIMIT))
    }

    fn read(said: Said) -> Self {
        let mut report = Self {
            passed: BTreeSet::new(),
            skipped: BTreeSet::new(),
            failed: BTreeSet::new(),
            summary: serde_json::Value::Null,
            said,
        };
        for line in report.said.out.lines() {
            // "ok 3 - RULE RULE: group.check # SKIP why"
            let name = line.split_once(": ").map(|(_, rest)| rest.split(' ').next().unwrap_or(""));
            let name = name.unwrap_or("").to_owned();
            if line.starts_with("not ok ") {
                report.failed.insert(name);
            } else if line.starts_with("ok ") && line.contains(" # SKIP ") {
                report.skipped.insert(name);
            } else if line.starts_with("ok ") {
                report.passed.insert(name);
            } else if line.starts_with('{') {
                report.summary = serde_json::from_str(line).expect("the summary is JSON");
            }
        }
        report
    }

    /// Judges that all checks of the plan were made, and the summary says what the lines say.
    fn assert_complete(&self) {
        let out = &self.said.out;
        assert!(!out.contains("Bail out!"), "{out}");
        let plan = out.lines().find_map(|line| line.strip_prefix("1..")).expect("a plan");
        let seen = [&self.passed, &self.skipped, &self.failed].map(BTreeSet::len);
        assert_eq!(plan.parse(), Ok(seen.iter().sum::<usize>()), "{out}");
        for (name, seen) in ["passed", "skipped", "failed"].iter().zip(seen) {
            assert_eq!(self.summary[name].as_u64(), Some(seen as u64), "{name}: {out}");
        }
    }

    /// Judges that exactly these checks failed.
    fn assert_failed(&self, expected: &BTreeSet<String>) {
        assert_eq!(&self.failed, expected, "{}", self.said.out);
        let status = i32::from(!expected.is_empty());
        assert_eq!(self.said.status, status, "{:?}", self.said);
    }

    fn measured(&self, name: &str) -> u64 {
        let value = self.summary["measured"][name].as_u64();
        value.unwrap_or_else(|| panic!("{name} was not measured: {}", self.said.out))
    }
}

fn deviations() -> BTreeSet<String> {
    DEVIATIONS.iter().map(|(check, _)| (*check).to_owned()).collect()
}

/// All checks, with 10,000 flips of mappings and 100,000 random calls.
#[test]
fn the_reference_conforms() {
    let report = Report::of(&[]);
    report.assert_complete();
    report.assert_failed(&deviations());
    // What the reference does not offer, and what needs to be asked for.
    let skipped = [
        "call.from_user_mode",
        "unmap.execute",
        "unmap.fault_address",
        "run.pending",
        "cpuid.tables_of_user_code",
        "cpuid.refused_tables_of_user_code",
        "withdrawal.everything",
    ];
    assert_eq!(report.skipped, skipped.map(str::to_owned).into(), "{}", report.said.out);
}

/// Two vCPUs touch the pages that go.
#[test]
fn two_vcpus_see_no_stale_mapping() {
    let report = Report::of(&["--cpus", "3", "only=tlb,race", "flips=2000"]);
    report.assert_complete();
    report.assert_failed(&BTreeSet::new());
    assert!(report.skipped.is_empty(), "{}", report.said.out);
    assert!(report.said.out.contains(" flips, 2 vCPUs, "), "{}", report.said.out);
}

#[test]
fn a_withdrawal_is_as_specified() {
    let report = Report::of(&["--l0", "--withdraw 8", "only=withdrawal", "withdraw=8"]);
    report.assert_complete();
    report.assert_failed(&BTreeSet::new());
    assert!(report.skipped.is_empty(), "{}", report.said.out);
}

/// An L1 that finds no L0 of this kind has nothing to judge, and nothing to complain of.
#[test]
fn without_the_abi_everything_is_skipped() {
    let report = Report::of(&["--l0", "--hide-abi"]);
    report.assert_complete();
    report.assert_failed(&BTreeSet::new());
    assert!(report.passed.is_empty() && report.skipped.len() > 250, "{}", report.said.out);
}

/// A tick is an instruction here, of L0's machine: kernel, KVM, l0-ref, L1 and L2.
#[test]
fn what_kvm_and_l0_answer_is_cheap() {
    let report = Report::of(&["--icount", "--cpus", "1", "only=measure"]);
    report.assert_complete();
    report.assert_failed(&BTreeSet::new());
    for (name, most) in [
        ("cpuid", 3600),
        ("rdmsr_held", 4600),
        ("rdmsr_value", 9000),
        ("rdmsr_shadow", 9000),
        ("map_adjoining_range", 15_000),
    ] {
        let found = report.measured(name);
        assert!(found > 100 && found <= most, "{name}: {found} instructions, not {most} at most");
    }
}
