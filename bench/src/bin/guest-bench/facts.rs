//! Prints what the numbers depend on.

use crate::sys::cpu::{self, Started};
use bench_report::lines;
use linux_guest::init::{Role, first_line, load_module, say};

/// A module that gives `/dev/cpu/0/msr`, if the initramfs has it.
const MSR_MODULE: &str = "/msr.ko";

/// Prints facts about machine, kernel and start.
pub fn print(role: Role, started: Started) {
    // Output of the kernel may stand on the line.
    say("");
    fact("boottime_at_init_ns", &started.since_boot.to_string());
    fact("tsc_at_init", &started.tsc.to_string());
    if role == Role::Init {
        match load_module(MSR_MODULE) {
            Ok(true) => fact("insmod", &format!("{MSR_MODULE} 0")),
            Ok(false) => {}
            Err(error) => fact("insmod", &format!("{MSR_MODULE} {error}")),
        }
    }
    fact("ncpu", &cpu::count().to_string());
    for (name, path) in [
        ("version", "/proc/version"),
        ("cmdline", "/proc/cmdline"),
        ("clocksource", "/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        ("thp", "/sys/kernel/mm/transparent_hugepage/enabled"),
    ] {
        if let Some(line) = first_line(path) {
            fact(name, &line);
        }
    }
}

/// Prints one fact.
pub fn fact(name: &str, value: &str) {
    say(&lines::info(name, value));
}
