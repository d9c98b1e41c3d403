//! The native guest proves the guest ABI on several CPU models, and dies as it should.

use roost_tests::{built, folder::Folder, tap::Report};

/// Every check passes on QEMU's CPU model `cpu`.
fn passes(cpu: &str) {
    let folder = Folder::new();
    // Some checks are about time: where it goes by instructions, a busy host does not matter.
    let run = folder.run(&built::native_guest()).option("--cpu", cpu).flag("--icount");
    let ended = run.to_end();
    Report::parse(&ended.said.out).assert_passed(&ended.said.out);
    ended.assert_powered_off();
    // It asks for a check of the roots after each group, L1 makes one in the end.
    assert!(ended.log.matches("root check: ").count() > 10, "{}", ended.log);
}

#[test]
fn everything_that_the_emulator_has() {
    passes("max");
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

/// Ways to break the ABI, and what L1 says about them.
const DEATHS: &[(&str, &str)] = &[
    ("event-without-pvcs", "triple fault: an event, and no PVCS is registered"),
    ("eretu-without-pvcs", "triple fault: ERETU, and no PVCS is registered"),
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

/// Asked for before it runs.
const NOT_STARTED: &str = "boot-failed";

#[test]
fn every_death_has_its_reason() {
    let folder = Folder::new();
    for (case, reason) in DEATHS {
        let run = folder.run(&built::native_guest()).append(&format!("die={case}"));
        run.to_end().assert_died(reason);
    }
}

#[test]
fn a_guest_can_say_why_it_cannot_start() {
    let folder = Folder::new();
    let run = folder.run(&built::native_guest()).append(&format!("die={NOT_STARTED}"));
    let ended = run.to_end();
    assert_eq!(ended.said.status, 3);
    assert!(ended.said.err.contains("' could not be started: no such thing\n"));
    assert!(ended.said.err.contains("roost: the guest could not be started\n"));
    ended.assert_l1_is_sound();
}

/// The guest lists its cases when it does not know one.
#[test]
fn no_death_is_forgotten() {
    let folder = Folder::new();
    let ended = folder.run(&built::native_guest()).append("die=?").to_end();
    let cases = ended.said.out.lines().filter_map(|line| line.strip_prefix("#   "));
    let mut cases: Vec<_> = cases.map(str::trim_end).collect();
    let mut tried: Vec<_> = DEATHS.iter().map(|(case, _)| *case).chain([NOT_STARTED]).collect();
    cases.sort_unstable();
    tried.sort_unstable();
    assert_eq!(cases, tried);
}
