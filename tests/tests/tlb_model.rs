//! L1 with its model of the TLB: guests run as ever, and each flush that is left out is found.

use roost_tests::{
    built::{self, Kernel},
    folder::Folder,
    outcome::Ended,
    run::Run,
    stats::RootCheck,
    tap::Report,
};

/// The checks of the native guest that need the flushes in question; the others take longer.
const CHECKS: &str = "only=range,hypercall,fetch,flush,tables";

/// Flaws, and the rule that each breaks.
const FLAWS: &[(&str, &str)] = &[
    ("all", "F3 "),
    ("current", "F3 "),
    ("load", "F3 "),
    ("address", "F3 "),
    ("user-address", "F3 "),
    ("upper-address", "F3 "),
    ("lower-address", "F3 "),
    ("requested", "I4 "),
    ("taken-tag", "tags "),
    ("dirty-bits", "F1 "),
    ("entry", "F6 "),
];

/// A run of the native guest. Some of its checks are about time, which goes by instructions, so
/// that each run is like the other.
fn native_guest<'a>(folder: &'a Folder, words: &str) -> Run<'a> {
    let run = folder.run(&built::conformance()).images(built::checks());
    run.flag("--icount").append(words)
}

/// Every check of the guest passed, no rule was broken, and the model had something to look at.
fn assert_judged(ended: &Ended, flushes: u64) {
    Report::parse(&ended.said.out).assert_passed(&ended.said.out);
    ended.assert_powered_off();
    let stats = ended.stats.as_ref().expect("statistics");
    let count = |name| stats.counter(name);
    assert!(count("tlb_flushes") > flushes, "{stats:?}");
    // Some of each kind for each flush, at the very least.
    for name in ["tlb_cached", "tlb_kept", "tlb_dropped", "tlb_compared", "tlb_inspected"] {
        assert!(count(name) > 10 * flushes, "{name}: {stats:?}");
    }
}

#[test]
fn the_native_guest_breaks_no_rule() {
    let folder = Folder::new();
    let ended = native_guest(&folder, "").to_end();
    assert_judged(&ended, 500);
}

#[test]
fn a_stock_kernel_breaks_no_rule() {
    let folder = Folder::new();
    let initrd = folder.guest_checks();
    let words = "console=hvc0 quiet check.n=0.05 \
                 check.only=fork_exec_1000,memory_stress,shared_file,modify_ldt,vdso,dmesg";
    let run = folder.run(&Kernel::Cloud.file()).images(built::checks());
    let ended = run.initrd(&initrd).append(words).to_end();
    assert_judged(&ended, 5_000);
}

#[test]
fn every_flaw_is_found() {
    for (flaw, rule) in FLAWS {
        let folder = Folder::new();
        let words = format!("{CHECKS} roost.tlb-flaw={flaw}");
        let ended = native_guest(&folder, &words).to_end();
        let said = &ended.said;
        assert_eq!(said.status, 4, "{flaw}: {said:?}");
        let first = said.err.lines().next().unwrap_or_default();
        let stopped = format!("roost: guest 'conformance' was stopped: L1 broke rule {rule}");
        assert!(first.starts_with(&stopped), "{flaw}: {}", said.err);
        assert!(said.err.contains("\nroost: L1 failed\n"), "{flaw}: {}", said.err);
        // A flush that is left out opens no other memory.
        let checks = RootCheck::all(&ended.log);
        assert!(!checks.is_empty() && checks.iter().all(|check| check.violations == 0), "{flaw}");
    }
}

/// L1 lists its flaws when it does not know one.
#[test]
fn no_flaw_is_forgotten() {
    let folder = Folder::new();
    let ended = native_guest(&folder, "roost.tlb-flaw=?").to_end();
    assert_eq!(ended.said.status, 4);
    let (_, names) = ended.said.err.split_once("no such flaw; take one of: ").expect("a list");
    let names: Vec<_> = names.lines().next().unwrap_or_default().split(", ").collect();
    let tried: Vec<_> = FLAWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, tried);
}
