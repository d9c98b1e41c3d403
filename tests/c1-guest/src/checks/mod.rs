//! The checks, by subject.

mod apic;
mod compat;
mod control;
mod debug;
mod detect;
mod devices;
mod eretu;
mod exceptions;
mod extension;
mod features;
mod fetching;
mod filling;
mod flushing;
mod guard;
mod hypercalls;
mod interrupt_delivery;
mod kvmclock;
mod large_pages;
mod local_table;
mod msr;
mod msr_access;
mod page_faults;
mod ports;
mod private;
mod pvcs;
mod range;
mod segments;
mod stepping;
mod syscalls;
mod tables;
mod vector_state;

use crate::{
    abi, clock, die, measure, paging,
    tap::{self, Verdict, equal},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::ext::{NativeBoot, call, shutdown};

/// A named check.
type Check = (&'static str, fn() -> Verdict);

/// Checks with one subject.
struct Group {
    name: &'static str,
    checks: &'static [Check],
}

const GROUPS: &[Group] = &[
    detect::GROUP,
    msr::GROUP,
    range::GROUP,
    pvcs::GROUP,
    kvmclock::GROUP,
    syscalls::GROUP,
    hypercalls::GROUP,
    segments::GROUP,
    eretu::GROUP,
    compat::GROUP,
    exceptions::GROUP,
    stepping::GROUP,
    debug::GROUP,
    interrupt_delivery::GROUP,
    apic::GROUP,
    ports::GROUP,
    control::GROUP,
    devices::GROUP,
    fetching::GROUP,
    vector_state::GROUP,
    // What is enabled from here on stays enabled.
    extension::GROUP,
    private::GROUP,
    local_table::GROUP,
    features::GROUP,
    guard::GROUP,
    page_faults::GROUP,
    flushing::GROUP,
    filling::GROUP,
    large_pages::GROUP,
    tables::GROUP,
];

/// Runs what the command line asks for and powers off.
pub fn run(boot: &NativeBoot, cmdline: &str) -> ! {
    clock::init(boot.tsc_hz);
    let word = |key: &str| cmdline.split(' ').find_map(|word| word.strip_prefix(key));
    let has = |wanted: &str| cmdline.split(' ').any(|word| word == wanted);
    if let Some(case) = word("die=") {
        die::run_case(case);
        abi::shutdown(shutdown::POWEROFF)
    }
    if has("measure") {
        measure::run();
        abi::shutdown(shutdown::POWEROFF)
    }
    interrupt_delivery::SLOW.store(has("slow"), Relaxed);
    for group in GROUPS {
        group.run(word("only="));
    }
    let reason = if tap::finish() { shutdown::POWEROFF } else { shutdown::CRASH };
    abi::shutdown(reason)
}

impl Group {
    fn run(&self, only: Option<&str>) {
        let wanted = |name: &str| {
            only.is_none_or(|only| {
                only.split(',').any(|wanted| match wanted.split_once('.') {
                    Some((group, start)) => group == self.name && name.starts_with(start),
                    None => wanted == self.name,
                })
            })
        };
        let mut ran = false;
        for (name, check) in self.checks.iter().filter(|(name, _)| wanted(name)) {
            ran = true;
            tap::report(self.name, name, &check());
            paging::reset();
        }
        if ran {
            let violations = abi::call(call::CHECK_ROOTS, [0; 4]);
            tap::report(self.name, "roots", &equal("violations", violations, 0));
        }
    }
}
