//! The reference L0, with the whole chain emulated: QEMU, a stock kernel with KVM, l0-ref, L1, a
//! guest. QEMU shows the kernel SVM; L1 sees none of it.

use roost_tests::{
    built::{self, Kernel},
    folder::Folder,
    l0_stats::L0Stats,
    outcome::Said,
    stats::RootCheck,
    tap::Report,
};
use std::{fs, path::Path, process::Command, time::Duration};

/// The chain boots in 10 s on a machine that has nothing else to do.
const LIMIT: Duration = Duration::from_secs(330);

/// Runs the chain with options of `roost run`; returns what it said and L1's log.
fn chain(folder: &Folder, options: &[&str]) -> (Said, String) {
    let log = folder.path("l1.log");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/l0.sh");
    let mut command = Command::new(script);
    command.args(["--emulate", "--timeout", "300", "--l1-log"]).arg(&log).args(options);
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
fn check_guest(
    folder: &Folder,
    backend: &str,
    only: &str,
    more: &[&str],
) -> (Report, Said, String) {
    let kernel = Kernel::Cloud;
    let initrd = shown(&folder.guest_checks_with_msrs(kernel));
    let kernel = shown(&kernel.file());
    let words = format!("console=hvc0 quiet check.n=0.05 check.only={only}");
    let options = ["--kernel", &kernel, "--initrd", &initrd, "--memory", "256M", "--stats"];
    let options = [&options[..], &["--backend", backend, "--append", &words], more].concat();
    let (said, log) = chain(folder, &options);
    let report = Report::parse(&said.out);
    report.assert_passed(&format!("{said:?} {log}"));
    assert_eq!(said.status, 0, "{said:?}");
    assert!(log.contains("powered off"), "{log}");
    (report, said, log)
}

#[test]
fn l1_runs_a_stock_kernel_under_kvm() {
    let folder = Folder::new();
    let only = "cpuid,hash_64,avx_state,avx_signal,fs_gs_base,signal_storm,time,dmesg";
    let (report, _, log) = check_guest(&folder, "shadow", only, &[]);
    // KVM lets CPUID trap, so the guest has its own.
    assert!(report.passed.iter().any(|check| check == "cpuid"), "{report:?}");
    assert!(log.contains("x2apic: true") && log.contains("clock: TSC"), "{log}");
    assert_roots(&log);
}

/// How often the guest did each of what L1 need not hear of.
fn times_undisturbed(console: &str) -> Vec<u64> {
    let line = console.lines().find_map(|line| line.trim_end().strip_prefix("# undisturbed: "));
    let words = line.unwrap_or_else(|| panic!("nothing was counted: {console}")).split(' ');
    words.filter_map(|word| word.split_once('=')?.1.parse().ok()).collect()
}

/// Time goes by instructions: the emulated machine's own ticks would drown it on a busy host.
#[test]
fn l0_runs_a_stock_kernel_for_l1() {
    let folder = Folder::new();
    let only = "proc,fork_exec_1000,hash_64,avx_state,avx_signal,memory_stress,cow,signal_storm,\
                time,undisturbed,dmesg";
    let (_, said, log) = check_guest(&folder, "assisted", only, &["--icount", "--l0", "--stats"]);
    assert!(log.contains("is run by L0"), "{log}");
    let counter = |name: &str| {
        let value = log.split_once(&format!("\"{name}\":")).unwrap_or_else(|| panic!("{log}")).1;
        let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
        value[..end].parse::<u64>().unwrap_or_else(|error| panic!("{name}, {error}: {log}"))
    };
    // Only the console comes to L1, and deadlines.
    assert!(counter("l0_ports") > 100, "{log}");
    for name in ["l0_mmio", "l0_msrs", "l0_hypercalls"] {
        assert_eq!(counter(name), 0, "{name}: {log}");
    }
    // CPUID, system calls, first touches and MSRs, each so often that it would be seen if some of
    // them entered L1, for whatever reason.
    let times = times_undisturbed(&said.out);
    let least = times.iter().min().copied().unwrap_or_default();
    assert!(times.len() == 4 && least >= 20_000, "{times:?}");
    let stats = L0Stats::parse(&said.out);
    assert!(counter("l0_runs") < least / 4, "{log}");
    // L0 counts the same, and the hypervisor gave it nothing but MSRs beside them.
    assert_eq!(stats.entries(), counter("l0_runs"), "{stats:?} {log}");
    assert!(stats.counter("msrs") >= least, "{stats:?}");
    assert!(stats.counter("stops") < stats.counter("msrs") + least / 2, "{stats:?}");
    stats.assert_clean();
}

#[test]
fn without_an_offer_the_guest_is_refused_or_run_by_l1() {
    let folder = Folder::new();
    let kernel = shown(&built::conformance());
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
    let kernel = shown(&built::conformance());
    let options = ["--kernel", &kernel, "--memory", "64M", "--append", "die=stack-nowhere"];
    let (said, log) = chain(&folder, &options);
    assert_eq!(said.status, 3, "{said:?}");
    assert!(said.out.contains("l0-ref: guest 'conformance' died: triple fault: "), "{said:?}");
    assert!(said.out.contains("l0-ref: the guest died"), "{said:?}");
    assert_roots(&log);
}
