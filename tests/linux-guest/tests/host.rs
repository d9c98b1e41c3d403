//! Runs all checks on this machine: what a guest must pass, the machine itself passes.

use std::process::Command;

fn checks(words: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_guest-checks")).args(words).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn this_machine_passes_or_says_what_needs_a_guest() {
    let (passed, text) = checks(&["check.n=0.02"]);
    assert!(passed, "{text}");
    let skipped: Vec<&str> = text.lines().filter(|line| line.contains("# SKIP")).collect();
    assert!(skipped.iter().any(|line| line.contains(" - dmesg ")), "{text}");
    assert!(skipped.iter().any(|line| line.contains(" - oom ")), "{text}");
}

#[test]
fn a_run_that_checks_nothing_fails() {
    let (passed, text) = checks(&["check.only=dmesg"]);
    assert!(!passed);
    assert!(text.ends_with("@DONE pass=0 fail=1 skip=1\n"), "{text}");
}

#[test]
fn typing_mistakes_are_refused() {
    for word in ["check.only=no_such_check", "check.onyl=proc", "check.n=0"] {
        let (passed, text) = checks(&[word]);
        assert!(!passed && text.starts_with("Bail out!"), "{word}: {text}");
    }
}
