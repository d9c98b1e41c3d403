//! What exits cost: no operation takes more instructions than it is known to need.

use roost_tests::{built, folder::Folder, outcome::Said};
use serde_json::Value;
use std::{process::Command, time::Duration};

const LIMIT: Duration = Duration::from_secs(240);

/// Operations and the most that their median may be: a little more than when they were measured last.
const MOST: &[(&str, u64)] = &[
    ("hypercall_empty", 200),
    ("hypercall_wrmsr", 260),
    ("hypercall_invlpg", 390),
    ("rdmsr", 290),
    ("port_out", 920),
    ("mmio_load", 1290),
    ("fill_page", 640),
    ("reflected_page_fault", 490),
    ("absent_page_behind_one_just_mapped", 60),
    ("reflected_undefined_opcode", 260),
    ("end_of_interrupt", 310),
    ("self_ipi", 475),
    ("self_ipi_handled", 800),
    ("timer_to_running", 840),
    ("timer_to_halted", 710),
    ("user_to_kernel", 25),
    ("kernel_to_user_by_sysret", 35),
];

fn measured(cpu: &str) -> Vec<Value> {
    let folder = Folder::new();
    let mut command = Command::new(built::tool());
    // Without statistics, which time each exit.
    command.args(["run", "--accel=tcg", "--icount", "--memory=64M", "--timeout=200"]);
    command.args(["--cpu", cpu, "--append", "rounds=21", "--kernel"]).arg(built::exits());
    command.arg("--l1-log").arg(folder.path("log"));
    let said = Said::by(command, LIMIT);
    assert_eq!(said.status, 0, "{said:?}");
    let line = said.out.lines().find(|line| line.starts_with('{')).expect("a report");
    let report: Value = serde_json::from_str(line).expect("the report is JSON");
    report["operations"].as_array().expect("operations").clone()
}

#[test]
fn no_exit_has_become_dearer() {
    let operations = measured("EPYC-v3");
    for (name, most) in MOST {
        let found = operations.iter().find(|operation| operation["name"] == *name);
        let median = found.and_then(|operation| operation["median"].as_u64());
        let median = median.unwrap_or_else(|| panic!("{name} was not measured"));
        assert!(median <= *most, "{name}: {median} instructions, not {most} at most");
    }
}

/// Without FSGSBASE and what else newer CPUs have.
#[test]
fn the_oldest_64_bit_cpu_is_measured_too() {
    assert!(measured("qemu64").len() > 40);
}
