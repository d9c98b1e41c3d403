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

/// Runs the checks `only` in a stock kernel's guest under `backend`; all of them must pass.
fn check_guest(folder: &Folder, backend: &str, only: &str) -> (Report, String) {
    let (kernel, initrd) = (shown(&Kernel::Cloud.file()), shown(&folder.guest_checks()));
    let words = format!("console=hvc0 quiet check.n=0.05 check.only={only}");
    let options = ["--kernel", &kernel, "--initrd", &initrd, "--memory", "256M", "--stats"];
    let options = [&options[..], &["--backend", backend, "--append", &words]].concat();
    let (said, log) = chain(folder, &options);
    let report = Report::parse(&said.out);
    report.assert_passed(&format!("{said:?} {log}"));
    assert_eq!(said.status, 0, "{said:?}");
    assert!(log.contains("powered off"), "{log}");
    (report, log)
}

#[test]
fn l1_runs_a_stock_kernel_under_kvm() {
    let folder = Folder::new();
    let only = "cpuid,hash_64,avx_state,avx_signal,fs_gs_base,signal_storm,time,dmesg";
    let (report, log) = check_guest(&folder, "shadow", only);
    // KVM lets CPUID trap, so the guest has its own.
    assert!(report.passed.iter().any(|check| check == "cpuid"), "{report:?}");
    assert!(log.contains("x2apic: true") && log.contains("clock: TSC"), "{log}");
    assert_roots(&log);
}

#[test]
fn l0_runs_a_stock_kernel_for_l1() {
    let folder = Folder::new();
    let only = "proc,fork_exec_1000,hash_64,avx_state,avx_signal,memory_stress,cow,signal_storm,time,dmesg";
    let (_, log) = check_guest(&folder, "assisted", only);
    assert!(log.contains("is run by L0"), "{log}");
    // CPUID, faults, timers: nothing of the kind comes to L1, only the console does.
    let counter = |name: &str| {
        let value = log.split_once(&format!("\"{name}\":"))?.1;
        value[..value.find(|c: char| !c.is_ascii_digit())?].parse::<u64>().ok()
    };
    assert!(counter("l0_ports").is_some_and(|ports| ports > 100), "{log}");
    for name in ["l0_mmio", "l0_msrs", "l0_hypercalls"] {
        assert_eq!(counter(name), Some(0), "{name}: {log}");
    }
}

#[test]
fn without_an_offer_the_guest_is_refused_or_run_by_l1() {
    let folder = Folder::new();
    let kernel = shown(&built::native_guest());
    let run = |backend| {
        let words = "only=detect";
        let options = ["--kernel", &kernel, "--memory", "64M", "--backend", backend];
        chain(&folder, &[&options[..], &["--append", words]].concat())
    };
    let (said, log) = run("assisted");
    assert_eq!(said.status, 3, "{said:?}");
    assert!(said.out.contains("use --backend shadow"), "{said:?}");
    assert!(!log.contains("is run by L0"), "{log}");
    let (said, log) = run("auto");
    assert_eq!(said.status, 0, "{said:?}");
    assert!(log.contains("is run by L1, for a native guest"), "{log}");
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
