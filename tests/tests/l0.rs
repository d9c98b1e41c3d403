//! The reference L0, with the whole chain emulated: QEMU, a stock kernel with KVM, l0-ref, L1, a
//! guest. QEMU shows the kernel SVM; L1 sees none of it.

use roost_tests::{
    built::{self, Kernel},
    folder::Folder,
    outcome::Said,
    stats::RootCheck,
    tap::Report,
};
use std::{fs, path::Path, process::Command, time::Duration};

/// The chain boots in 10 s on a machine that has nothing else to do.
const LIMIT: Duration = Duration::from_secs(150);

/// Runs the chain with options of `roost run`; returns what it said and L1's log.
fn chain(folder: &Folder, options: &[&str]) -> (Said, String) {
    let log = folder.path("l1.log");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/l0.sh");
    let mut command = Command::new(script);
    command.args(["--emulate", "--timeout", "120", "--l1-log"]).arg(&log).args(options);
    command.env("TMPDIR", folder.path(""));
    let said = Said::by(command, LIMIT);
    (said, fs::read_to_string(log).unwrap_or_default())
}

/// The path of a file as an argument.
fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Nothing is wrong with L1's tables at the guest's end.
fn assert_roots(log: &str) {
    let checks = RootCheck::all(log);
    assert!(!checks.is_empty(), "no root was checked: {log}");
    assert!(checks.iter().all(|check| check.violations == 0), "{log}");
}

#[test]
fn a_stock_kernel_runs_under_l1_under_kvm() {
    let folder = Folder::new();
    let (kernel, initrd) = (shown(&Kernel::Cloud.file()), shown(&folder.guest_checks()));
    let words = "console=hvc0 quiet check.n=0.05 check.only=cpuid,hash_64,avx_state,avx_signal,fs_gs_base,signal_storm,time,dmesg";
    let options = ["--kernel", &kernel, "--initrd", &initrd, "--memory", "256M", "--append", words];
    let (said, log) = chain(&folder, &options);
    let report = Report::parse(&said.out);
    report.assert_passed(&format!("{said:?} {log}"));
    // KVM lets CPUID trap, so the guest has its own.
    assert!(report.passed.iter().any(|check| check == "cpuid"), "{report:?}");
    assert_eq!(said.status, 0, "{said:?}");
    assert!(log.contains("x2apic: true") && log.contains("clock: TSC"), "{log}");
    assert!(log.contains("powered off"), "{log}");
    assert_roots(&log);
}

/// l0-check plays L1, with programs of a few bytes as L2.
#[test]
fn the_abi_is_served_on_kvm() {
    let folder = Folder::new();
    let (said, log) = chain(&folder, &["--check"]);
    Report::parse(&said.out).assert_passed(&format!("{said:?} {log}"));
    assert_eq!(said.status, 0, "{said:?}");
}

#[test]
fn the_death_of_a_native_guest_is_told() {
    let folder = Folder::new();
    let kernel = shown(&built::native_guest());
    let options = ["--kernel", &kernel, "--memory", "64M", "--append", "die=stack-nowhere"];
    let (said, log) = chain(&folder, &options);
    assert_eq!(said.status, 3, "{said:?}");
    assert!(said.out.contains("l0-ref: guest 'c1-guest' died: triple fault: "), "{said:?}");
    assert!(said.out.contains("l0-ref: the guest died"), "{said:?}");
    assert_roots(&log);
}
