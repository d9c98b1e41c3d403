//! What a guest costs that L0 runs for L1, against a guest of KVM with the same kernel: instructions,
//! counted by `scripts/bench-l0.sh`.

use roost_tests::{folder::Folder, outcome::Said};
use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

/// It takes a minute and a half on a machine that has nothing else to do.
const LIMIT: Duration = Duration::from_secs(900);

/// The rows, and how much more L1 may make them cost.
const MOST: [(&str, f64); 6] = [
    // From the first instruction of the kernel to the first of init.
    ("start to init", 1.3),
    ("getppid", 1.05),
    ("pf_storm_1t", 1.05),
    ("cow_break", 1.05),
    ("fork_exit", 1.05),
    ("fork_exec_true", 1.05),
];

/// The ratios of a table `| row | direct | assisted | ratio |`.
fn ratios(table: &str) -> BTreeMap<String, f64> {
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let rows = table.lines().map(cells).filter(|cells| cells.len() == 6);
    rows.filter_map(|cells| Some((cells[1].clone(), cells[4].parse().ok()?))).collect()
}

#[test]
fn a_guest_of_l0_costs_what_one_of_kvm_does() {
    let folder = Folder::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/bench-l0.sh");
    let mut command = Command::new(script);
    command.args([
        "--no-build",
        "--rows",
        "getppid,pf_storm_1t,cow_break,fork_exit,fork_exec_true",
    ]);
    command.arg("--logs").arg(folder.path("logs")).args(["direct", "assisted"]);
    command.env("TMPDIR", folder.path(""));
    let said = Said::by(command, LIMIT);
    assert_eq!(said.status, 0, "{said:?}");
    let ratios = ratios(&said.out);
    for (row, most) in MOST {
        let ratio = ratios.get(row).copied().unwrap_or_default();
        assert!(ratio > 0.5 && ratio <= most, "{row}: {ratio}, not {most} at most: {}", said.out);
    }
}
