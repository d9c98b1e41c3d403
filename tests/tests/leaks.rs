//! Nothing of one guest reaches another: canaries that one leaves wherever it can, and that the other
//! looks for wherever it can, on one CPU that goes from one to the other and back all the time.

use roost_tests::{built, folder::Folder, outcome::Said};
use serde_json::Value;
use std::{fs, path::PathBuf, time::Duration};

/// How often each guest gives way to the other, unless [`roost_tests::times`] says otherwise: a factor.
const ROUNDS: u64 = 20_000;
const LIMIT: Duration = Duration::from_secs(1800);

/// What L1 forgets, and who finds that: the guest that looks, by this part of a check's complaint, the
/// memory's, or the counts.
const FLAWS: &[(&str, &str)] = &[("slots", "a limit of its own: found 0x0")];
/// The same in the L1 that breaks rules of the ABI.
const ABI_FLAWS: &[(&str, &str)] =
    &[("vectors-leak", "registers: found 0x"), ("tsc-aux-leaks", "TSC_AUX: found 0x")];

/// Two guests on one CPU.
fn run(folder: &Folder, images: PathBuf, machine: &str, words: [&str; 2]) -> (Said, String) {
    let guest = |name: &str, words: &str| {
        let kernel = built::conformance();
        format!(
            "[[guest]]\nname = \"{name}\"\nkernel = \"{}\"\nappend = \"{words}\"\n\
             memory = \"64M\"\nrestart = \"{}\"\n",
            kernel.display(),
            if words.contains("live=") { "on-failure" } else { "never" },
        )
    };
    let [one, other] = words;
    let config =
        format!("accel = \"tcg\"\ncpus = 1\n{machine}\n{}{}", guest("a", one), guest("b", other));
    folder.file("guests.toml", config.as_bytes());
    let limit = format!("--timeout={}", LIMIT.as_secs());
    let arguments = ["run", "--config", "guests.toml", "--l1-log", "l1.log", &limit];
    let mut command = folder.command(&arguments);
    command.env("ROOST_IMAGES", images);
    let said = Said::by(command, LIMIT + Duration::from_secs(20));
    (said, fs::read_to_string(folder.path("l1.log")).unwrap_or_default())
}

/// What L1 has counted.
fn remains(log: &str) -> Value {
    let line = log.lines().rev().find_map(|line| line.strip_prefix("@remains "));
    serde_json::from_str(line.unwrap_or_else(|| panic!("nothing was counted: {log}")))
        .expect("JSON")
}

fn count(line: &Value, name: &str) -> u64 {
    line[name].as_u64().unwrap_or_else(|| panic!("no {name}: {line}"))
}

fn rounds() -> u64 {
    let times = roost_tests::times().map_or(1, |times| times.parse().expect("a number"));
    ROUNDS * times
}

fn nothing_is_found(cpu: &str) {
    let folder = Folder::new();
    let rounds = rounds();
    let (leave, look) = (format!("leave={rounds} roost.window-scan=on"), format!("look={rounds}"));
    let machine = format!("cpu = \"{cpu}\"");
    let (said, log) = run(&folder, built::traps(), &machine, [&leave, &look]);
    assert_eq!(said.status, 0, "{said:?}");
    for line in ["a| ok 1 - EVT-1: leaks.leave", "b| ok 1 - EVT-1: leaks.look_for"] {
        assert!(said.out.lines().any(|said| said.trim_end() == line), "no {line}: {said:?}");
    }
    let line = remains(&log);
    println!("{cpu}: {line}");
    // Each gave way to the other, and was left more often than that.
    assert!(count(&line, "vm_changes") >= rounds, "{line}");
    assert!(count(&line, "scans") > 2 * rounds, "{line}");
    assert_eq!(count(&line, "found"), 0, "words of a guest in the window: {line}");
    // Each change of VM did all that the CPU asks for, and nothing else.
    assert_eq!(count(&line, "begun"), count(&line, "vm_changes"), "{line}");
    for step in 0..4 {
        let wanted = line["wanted"][step].as_bool().expect("what is to be done");
        let done = line["done"][step].as_u64();
        assert_eq!(done, Some(if wanted { count(&line, "begun") } else { 0 }), "{step}: {line}");
    }
    assert_eq!(line["wanted"][1].as_bool(), Some(true), "the return stack is always filled");
}

#[test]
fn no_register_and_no_word_of_the_window() {
    nothing_is_found("max");
}

/// Without FSGSBASE, RDTSCP, XSAVE and UMIP.
#[test]
fn neither_on_an_old_cpu() {
    nothing_is_found("qemu64");
}

/// Every life begins with memory that is zero, whoever had it before.
#[test]
fn memory_is_zero_in_each_life() {
    let folder = Folder::new();
    let (said, _) = run(&folder, built::traps(), "icount = true", ["live=5", "live=5"]);
    assert_eq!(said.status, 0, "{said:?}");
    let lives: Vec<_> = said.out.lines().filter(|line| line.contains("# life: ")).collect();
    println!("{} lives", lives.len());
    assert!(lives.len() >= 4, "{said:?}");
    let clean = |line: &&&str| line.trim_end().ends_with(" words, 0 are not 0");
    assert_eq!(lives.iter().filter(clean).count(), lives.len(), "{said:?}");
}

/// The guest that looks says `complaint`.
fn assert_found(images: PathBuf, flaw: &str, complaint: &str) {
    let folder = Folder::new();
    let (said, _) = run(&folder, images, "", [&format!("leave=5000 {flaw}"), "look=5000"]);
    assert!(said.out.contains("b| not ok 1 - EVT-1: leaks.look_for"), "{flaw}: {said:?}");
    assert!(said.out.contains(complaint), "{flaw}: {said:?}");
}

#[test]
fn what_is_forgotten_is_found() {
    for (flaw, complaint) in FLAWS {
        assert_found(built::traps(), &format!("roost.leak-flaw={flaw}"), complaint);
    }
    for (flaw, complaint) in ABI_FLAWS {
        assert_found(built::flaws(), &format!("roost.abi-flaw={flaw}"), complaint);
    }
}

#[test]
fn memory_that_is_not_zeroed_is_found() {
    let folder = Folder::new();
    let words = "live=5 roost.leak-flaw=memory";
    let (said, _) = run(&folder, built::traps(), "icount = true", [words, "live=5"]);
    assert!(said.out.contains("not ok 1 - EVT-1: leaks.life"), "{said:?}");
}

#[test]
fn a_change_of_vm_that_does_nothing_is_counted() {
    let folder = Folder::new();
    let leave = "leave=100 roost.window-scan=on roost.leak-flaw=barriers";
    let (said, log) = run(&folder, built::traps(), "", [leave, "look=100"]);
    assert_eq!(said.status, 0, "{said:?}");
    let line = remains(&log);
    assert!(count(&line, "vm_changes") >= 100 && count(&line, "begun") == 0, "{line}");
}
