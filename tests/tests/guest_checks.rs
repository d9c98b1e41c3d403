//! A Linux guest, checked from inside by its first program.

use roost_tests::{
    built::{self, Kernel},
    folder::Folder,
    outcome::{Ended, Said},
    tap::Report,
};
use std::{process::Command, time::Duration};

/// Scales how often the checks do things, if nobody said how often; 1 takes minutes.
const FEW: &str = "0.05";
/// Seconds for all checks: done a few times, and done as often as somebody wants.
const LIMITS: [u64; 2] = [240, 7200];

/// Runs the checks that `words` choose; all of them must pass, or be skipped.
fn check(kernel: Kernel, words: &str) -> (Ended, Report) {
    let folder = Folder::new();
    let initrd = folder.guest_checks();
    let times = roost_tests::times();
    let limit = LIMITS[usize::from(times.is_some())];
    let times = times.as_deref().unwrap_or(FEW);
    // A check that hangs is reported by name, before the whole run is cut.
    let run = folder.run(&kernel.file()).initrd(&initrd).limit(limit).append("console=hvc0 quiet");
    let words = format!("check.n={times} check.limit={} {words}", limit / 2);
    let ended = run.append(&words).to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    ended.assert_powered_off();
    (ended, report)
}

/// Nothing is skipped in a guest but what the machine lacks.
fn passes_everything(kernel: Kernel) {
    let (ended, report) = check(kernel, "");
    // TCG does not let CPUID trap.
    let [skipped] = report.skipped.as_slice() else { panic!("{:?}", report.skipped) };
    assert!(skipped.starts_with("cpuid "), "{skipped}");
    assert_eq!(hash(&ended.said.out), hash_here(), "64 processes hash as they do here");
}

#[test]
fn cloud_kernel() {
    passes_everything(Kernel::Cloud);
}

#[test]
fn later_cloud_kernel() {
    passes_everything(Kernel::Cloud612);
}

/// The checks find out by themselves what the kernel's vsyscall page should do.
#[test]
fn vsyscall_modes() {
    for mode in ["xonly", "emulate"] {
        let words = format!("vsyscall={mode} check.only=vsyscall,dmesg");
        let (_, report) = check(Kernel::Cloud, &words);
        assert!(report.has_passed("vsyscall") && report.has_passed("dmesg"));
    }
}

/// Where time goes by instructions, all counts of exits are exact.
#[test]
fn exits_with_counted_instructions() {
    let folder = Folder::new();
    let initrd = folder.guest_checks();
    let words = "console=hvc0 quiet check.only=exits_getppid,exits_first_touch";
    let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd).flag("--icount").append(words);
    let ended = run.to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    assert!(report.has_passed("exits_getppid") && report.has_passed("exits_first_touch"));
    ended.assert_powered_off();
}

/// The digest that the program prints.
fn hash(console: &str) -> String {
    let lines = || console.lines().map(str::trim_end);
    let hash = lines().find_map(|line| line.strip_prefix("@HASH "));
    hash.unwrap_or_else(|| panic!("no digest: {console}")).to_owned()
}

/// The same program's digest on this machine.
fn hash_here() -> String {
    let mut command = Command::new(built::guest_checks());
    command.arg("check.only=hash_64");
    let said = Said::by(command, Duration::from_secs(60));
    assert_eq!(said.status, 0, "{said:?}");
    hash(&said.out)
}
