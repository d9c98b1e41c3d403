//! The conformance suite of an L0 on the reference L0, with the whole chain emulated.

use roost_tests::{
    folder::Folder,
    l0_stats::L0Stats,
    outcome::Said,
    suite::{Flaw, Judgement, groups},
};
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
const DEVIATIONS: [(&str, &str); 4] = [
    ("call.string_output", "KVM does not tell an OUTS of one element from an OUT"),
    ("registers.refused_general", "addresses are looked at as with five levels of tables"),
    ("vcpu.first_xcr0", "KVM on QEMU's SVM does not see XSETBV, and is told before"),
    ("registers.refused_special", "so are bases, and CS with both L and D is taken"),
];

/// What the suite reported.
#[derive(Debug)]
struct Report {
    said: Said,
    judgement: Judgement,
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
        Self { judgement: Judgement::parse(&said.out), said }
    }

    /// Judges that all checks of the plan were made, and the summary says what the lines say.
    fn assert_complete(&self) {
        self.judgement.assert_complete(&self.said.out);
    }

    fn failed(&self) -> BTreeSet<String> {
        self.judgement.report.failed_names()
    }

    fn skipped(&self) -> BTreeSet<String> {
        self.judgement.report.skipped_names()
    }

    /// Judges that exactly these checks failed.
    fn assert_failed(&self, expected: &BTreeSet<String>) {
        assert_eq!(&self.failed(), expected, "{}", self.said.out);
        let status = i32::from(!expected.is_empty());
        assert_eq!(self.said.status, status, "{:?}", self.said);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn deviations() -> BTreeSet<String> {
    DEVIATIONS.iter().map(|(check, _)| (*check).to_owned()).collect()
}

/// All checks, with 100,000 random calls; nothing of them is left in the end.
#[test]
fn the_reference_conforms() {
    let report = Report::of(&["--l0", "--stats", "flips=1000"]);
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
    assert_eq!(report.skipped(), skipped.map(str::to_owned).into(), "{}", report.said.out);
    L0Stats::parse(&report.said.out).assert_clean();
}

/// Two vCPUs touch the pages that go, 10,000 times.
#[test]
fn two_vcpus_see_no_stale_mapping() {
    let report = Report::of(&["--cpus", "3", "--l0", "--stats", "only=tlb,race", "flips=10000"]);
    report.assert_complete();
    report.assert_failed(&BTreeSet::new());
    assert!(report.skipped().is_empty(), "{}", report.said.out);
    assert!(report.said.out.contains("# 10000 flips, 2 vCPUs, "), "{}", report.said.out);
    L0Stats::parse(&report.said.out).assert_clean();
}

#[test]
fn a_withdrawal_is_as_specified() {
    let report = Report::of(&["--l0", "--withdraw 8", "only=withdrawal", "withdraw=8"]);
    report.assert_complete();
    report.assert_failed(&BTreeSet::new());
    assert!(report.skipped().is_empty(), "{}", report.said.out);
}

/// An L1 that finds no L0 of this kind has nothing to judge, and nothing to complain of.
#[test]
fn without_the_abi_everything_is_skipped() {
    let report = Report::of(&["--l0", "--hide-abi"]);
    report.assert_complete();
    report.assert_failed(&BTreeSet::new());
    assert!(
        report.judgement.report.passed.is_empty() && report.skipped().len() > 250,
        "{}",
        report.said.out
    );
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
        ("map_adjoining_range", 1000),
        ("map_range", 15_000),
        ("unmap_range", 15_000),
    ] {
        let found = report.judgement.measured(name);
        assert!(found > 100 && found <= most, "{name}: {found} instructions, not {most} at most");
    }
}

/// With [`roost_tests::times`] set, each broken L0 is given everything, not only the groups that find
/// the bug.
const FLAWS: &str = include_str!("../l0-conformance/FLAWS.md");

/// What a broken L0 is given.
fn words(flaw: &Flaw) -> Vec<String> {
    let which = match (flaw.only_first, roost_tests::times()) {
        (true, _) => vec!["only=vm.churn".to_owned()],
        (false, Some(_)) => vec!["skip=vm.churn,fuzz,measure".to_owned()],
        (false, None) => vec![format!("only={}", groups(&flaw.red)), "skip=vm.churn".to_owned()],
    };
    [vec!["flips=100".to_owned(), "fuzz=1000".to_owned()], which].concat()
}

/// What the suite found other than it should; `None` if all is right.
fn judge(flaw: &Flaw) -> Option<String> {
    let words = words(flaw);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let report = Report::of_broken(flaw.name, &words);
    report.assert_complete();
    let (known, failed) = (deviations(), report.failed());
    let missing: Vec<_> = flaw.red.difference(&failed).collect();
    let allowed = |name: &&String| {
        let group = format!("{}.*", name.split('.').next().unwrap_or(""));
        let has = |names: &BTreeSet<String>| names.contains(*name) || names.contains(&group);
        [&flaw.red, &flaw.maybe, &known].into_iter().any(has)
    };
    let surplus: Vec<_> = failed.iter().filter(|name| !allowed(name)).collect();
    let right = missing.is_empty() && surplus.is_empty();
    let out = &report.said.out;
    (!right).then(|| format!("{}: not red: {missing:?}, red too: {surplus:?}\n{out}", flaw.name))
}

/// Each bug turns red what the table says and nothing else. Every second row, from `first` on.
fn broken_l0s_fail_where_they_should(first: usize) {
    let rows = Flaw::all(FLAWS);
    assert!(rows.len() > 20, "the table is found");
    let wrong: Vec<_> = rows.iter().skip(first).step_by(2).filter_map(judge).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn broken_l0s_fail_where_they_should_1() {
    broken_l0s_fail_where_they_should(0);
}

#[test]
fn broken_l0s_fail_where_they_should_2() {
    broken_l0s_fail_where_they_should(1);
}
