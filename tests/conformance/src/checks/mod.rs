//! The checks, by subject, and the run over them.

mod apic;
mod card_pairs;
mod cards;
mod compat;
mod control;
mod debug;
mod detect;
mod devices;
mod disk_queues;
mod disks;
mod early_faults;
mod entropy;
mod eretu;
mod exceptions;
mod extension_calls;
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
mod smp;
mod smp_flush;
mod smp_ipi;
mod smp_state;
mod sockets;
mod start;
mod stepping;
mod syscalls;
mod tables;
mod terminal;
mod vector_state;

pub use segments::{descriptor, look};

use crate::{
    abi, clock, counters, dial, die, durable, extension, leaks, measure, paging, second, talk,
    tap::{self, Verdict},
    terminal as console, ways,
};
use conformance::options::{Options, Task};
use core::fmt::Arguments;
use pv_abi::ext::{Features, NativeBoot, shutdown};
use suite::{native::uart::Uart, println};
use suite::{selection::Selection, tally::Tally};

/// A check.
#[derive(Clone, Copy, Debug)]
struct Check {
    /// Its name in the group.
    name: &'static str,
    /// Rules of the specification that it checks, separated by spaces.
    rules: &'static str,
    /// What it does.
    run: fn() -> Verdict,
}

/// Shortens the tables of checks.
const fn check(name: &'static str, rules: &'static str, run: fn() -> Verdict) -> Check {
    Check { name, rules, run }
}

/// What must be there for a group's checks.
#[derive(Clone, Copy, Debug)]
enum Setting {
    /// Generation C1.
    Anywhere,
    /// Roost's extension.
    Extension,
    /// One of its features, which is enabled before each check.
    Feature(Features),
}

impl Setting {
    fn arrange(self) -> Verdict {
        match self {
            Self::Anywhere => Ok(()),
            Self::Extension => extension::needed(),
            Self::Feature(feature) => extension::enable(feature),
        }
    }
}

/// Checks with one subject.
#[derive(Clone, Copy, Debug)]
struct Group {
    name: &'static str,
    setting: Setting,
    checks: &'static [Check],
}

const GROUPS: &[Group] = &[
    start::GROUP,
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
    extension_calls::GROUP,
    private::GROUP,
    disks::GROUP,
    cards::GROUP,
    entropy::GROUP,
    terminal::GROUP,
    sockets::GROUP,
    smp::GROUP,
    local_table::GROUP,
    early_faults::GROUP,
    features::GROUP,
    guard::GROUP,
    page_faults::GROUP,
    flushing::GROUP,
    filling::GROUP,
    large_pages::GROUP,
    tables::GROUP,
];

/// What ends each group: no shadow table holds what it must not.
const ROOTS: Check = check("roots", "XHC-12", || {
    extension::needed()?;
    extension::check_roots()
});

/// The checks of `group` that are asked for.
fn chosen<'a>(
    group: &'static Group,
    selection: &'a Selection<'_>,
) -> impl Iterator<Item = &'static Check> + 'a {
    group.checks.iter().filter(|check| selection.chosen(group.name, check.name))
}

fn chosen_groups<'a>(selection: &'a Selection<'_>) -> impl Iterator<Item = &'static Group> + 'a {
    GROUPS.iter().filter(|group| chosen(group, selection).next().is_some())
}

/// Does what the command line asks for and ends the VM.
pub fn run(boot: &NativeBoot, cmdline: &str) -> ! {
    clock::init(boot.tsc_hz);
    extension::detect();
    let options = match Options::parse(cmdline) {
        Ok(options) => options,
        Err(word) => stop(format_args!(
            "`{word}` is no option: only=, skip=, slow, any-cost, patient, list, die=, measure, durable, ways=, leave=, look=, live=, talk=, flood=, outside, dial=, echo"
        )),
    };
    let selection = &options.selection;
    if let Some(name) = selection.unknown(|one| chosen_groups(one).next().is_some()) {
        stop(format_args!("there is no check `{name}`: `list` names all"));
    }
    if let Some(case) = options.die {
        die::run_case(case);
        abi::shutdown(shutdown::POWEROFF)
    }
    if options.any_cost {
        counters::ignore();
    }
    if options.patient {
        second::be_patient();
    }
    interrupt_delivery::allow_slow(options.slow);
    match options.task {
        Task::List => list(selection),
        Task::Measure => measure::run(),
        Task::Ways(rounds) => ways::run(rounds),
        Task::Durable => durable::write(),
        Task::Leave(rounds) => leaks::leave(rounds),
        Task::Look(rounds) => leaks::look_for(rounds),
        Task::Live(seconds) => leaks::live(boot.memory, seconds),
        Task::Talk(rounds) => talk::talk(rounds),
        Task::Flood(count) => talk::flood(count),
        Task::Outside => talk::outside(),
        Task::Dial(cid) => dial::dial(cid),
        Task::Echo => console::echo(),
        Task::Judge => judge(selection),
    }
    abi::shutdown(shutdown::POWEROFF)
}

fn stop(why: Arguments<'_>) -> ! {
    println!("Bail out! {why}");
    abi::shutdown(shutdown::CRASH)
}

fn list(selection: &Selection<'_>) {
    for group in chosen_groups(selection) {
        for check in chosen(group, selection) {
            println!("{}.{} {}", group.name, check.name, check.rules);
        }
    }
}

fn judge(selection: &Selection<'_>) {
    println!("# Conformance of a hypervisor to the guest ABI, version 1.0");
    let checks: usize =
        chosen_groups(selection).map(|group| chosen(group, selection).count()).sum();
    println!("1..{}", checks + chosen_groups(selection).count());
    let mut tally = Tally::default();
    for group in chosen_groups(selection) {
        for check in chosen(group, selection) {
            let verdict = group.setting.arrange().and_then(|()| (check.run)());
            second::quit();
            tap::report(&mut tally, check.rules, group.name, check.name, &verdict);
            paging::reset();
        }
        tap::report(&mut tally, ROOTS.rules, group.name, ROOTS.name, &(ROOTS.run)());
    }
    let _ = tally.end(&mut Uart);
    if tally.all.failed > 0 {
        abi::shutdown(shutdown::CRASH);
    }
}
