//! The conformance suite of an L0 on the reference L0, with the whole chain emulated.

use roost_tests::{folder::Folder, outcome::Said};
use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

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
        Self::by(Command::new(root().join("tests/l0-conformance/run.sh")), arguments)
    }

    /// Runs the suite on an l0-ref that has a bug.
    fn of_broken(flaw: &str, words: &[&str]) -> Self {
        let mut command = Command::new(root().join("tests/l0-conformance/run.sh"));
        let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        let broken = root().join(target).join("flaws/x86_64-unknown-linux-gnu/tool/l0-ref");
        assert!(broken.exists(), "{} does not exist: run scripts/test-l0.sh", broken.display());
        command.env("ROOST_L0_REF", broken).args(["--l0", &format!("--flaw {flaw}")]);
        Self::by(command, words)
    }

    fn by(mut command: Command, arguments: &[&str]) -> Self {
        let folder = Folder::new();
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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
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

/// `| name | what is wrong | rules | red |`
const FLAWS: &str = include_str!("../l0-conformance/FLAWS.md");
/// With it, each broken L0 is given everything, not only the groups that find the bug.
const THOROUGH: &str = "ROOST_TESTS_N";

/// Each bug turns red what the table says and nothing else. Every second row, from `first` on.
fn broken_l0s_fail_where_they_should(first: usize) {
    let rows = FLAWS.lines().filter_map(|line| line.strip_prefix("| ")).skip(1);
    let rows: Vec<Vec<_>> = rows.map(|row| row.split('|').map(str::trim).collect()).collect();
    assert!(rows.len() > 20, "the table is found");
    for row in rows.iter().skip(first).step_by(2) {
        let (flaw, red) = (row[0], row[3]);
        // All its VMs and handles are gone after that.
        let (red, only_first) = match red.split_once(',') {
            Some((red, _)) => (red, true),
            None => (red, false),
        };
        let expected: BTreeSet<_> = red.split_whitespace().map(str::to_owned).collect();
        let groups: BTreeSet<_> =
            expected.iter().filter_map(|name| name.split('.').next()).collect();
        let groups: Vec<_> = groups.into_iter().collect();
        let only = format!("only={}", groups.join(","));
        let mut words = vec!["flips=100", "fuzz=1000"];
        match (only_first, env::var_os(THOROUGH)) {
            (true, _) => words.push("only=vm.churn"),
            (false, Some(_)) => words.push("skip=vm.churn,fuzz,measure"),
            (false, None) => words.extend([only.as_str(), "skip=vm.churn"]),
        }
        let report = Report::of_broken(flaw, &words);
        report.assert_complete();
        let known = deviations();
        let failed: BTreeSet<_> = report.failed.difference(&known).cloned().collect();
        assert_eq!(failed, expected, "{flaw}: {}", report.said.out);
    }
}

#[test]
fn broken_l0s_fail_where_they_should_1() {
    broken_l0s_fail_where_they_should(0);
}

#[test]
fn broken_l0s_fail_where_they_should_2() {
    broken_l0s_fail_where_they_should(1);
}
