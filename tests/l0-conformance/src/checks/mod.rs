//! The checks, by subject, and the run over them.

mod apic;
mod call;
mod cpuid;
mod dirty;
mod discovery;
mod events;
mod exits;
mod features;
mod fuzz;
mod lists;
mod map;
mod measure;
mod policy;
mod private;
mod race;
mod registers;
mod reset;
mod run;
mod setup;
mod tlb;
mod unmap;
mod vcpu;
mod vm;
mod withdrawal;

use crate::{
    env::Env,
    println,
    runtime::{self, clock, console::Uart, cpu, end, end::End, smp, user},
    tap::{self, Verdict, Wrong},
};
use l0_conformance::{options::Options, usable::Usable};
use pv_abi::l0::{Discovery, discover};
use suite::{selection::Selection, tally::Tally};

/// A check.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Its name in the group.
    pub name: &'static str,
    /// Rules of the specification that it checks, separated by spaces.
    pub rules: &'static str,
    /// What it does.
    pub run: fn(&mut Env<'_>) -> Verdict,
}

/// Checks with one subject.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// Its checks.
    pub checks: &'static [Check],
}

/// Shortens the tables of checks.
const fn check(name: &'static str, rules: &'static str, run: fn(&mut Env<'_>) -> Verdict) -> Check {
    Check { name, rules, run }
}

const GROUPS: &[Group] = &[
    discovery::GROUP,
    call::GROUP,
    setup::GROUP,
    features::GROUP,
    vm::GROUP,
    vcpu::GROUP,
    lists::GROUP,
    map::GROUP,
    unmap::GROUP,
    run::GROUP,
    exits::GROUP,
    registers::GROUP,
    cpuid::GROUP,
    policy::GROUP,
    events::GROUP,
    dirty::GROUP,
    private::GROUP,
    apic::GROUP,
    reset::GROUP,
    tlb::GROUP,
    race::GROUP,
    fuzz::GROUP,
    measure::GROUP,
    withdrawal::GROUP,
];

/// All checks that are asked for.
fn chosen<'a>(
    selection: &'a Selection<'_>,
) -> impl Iterator<Item = (&'static str, &'static Check)> + 'a {
    let all = GROUPS.iter().flat_map(|group| group.checks.iter().map(|check| (group.name, check)));
    all.filter(|(group, check)| selection.chosen(group, check.name))
}

/// Does what the command line asks for and ends the machine.
pub fn run(command_line: &str, usable: &Usable) -> ! {
    println!("# Conformance of an L0 to the L0-L1 ABI, version 1.0");
    let options = match Options::parse(command_line) {
        Ok(options) => options,
        Err(word) => stop(format_args!(
            "`{word}` is no option: only=, skip=, flips=, fuzz=, seed=, withdraw=, list"
        )),
    };
    if let Some(name) = options.selection.unknown(|one| chosen(one).next().is_some()) {
        stop(format_args!("there is no check `{name}`: `list` names all"));
    }
    if options.list {
        chosen(&options.selection)
            .for_each(|(group, check)| println!("{group}.{} {}", check.name, check.rules));
        end::machine(End::Passed);
    }
    println!("1..{}", chosen(&options.selection).count());
    let tally = match discover(cpu::cpuid) {
        Discovery::Absent => skip_all(&options, "there is no L0 that speaks this ABI"),
        Discovery::Error { base, why } => broken_offer(&options, base, why),
        Discovery::Present(info) => judge(info, options, usable),
    };
    let _ = tally.end(&mut Uart);
    end::machine(if tally.all.failed == 0 { End::Passed } else { End::Failed })
}

fn stop(why: core::fmt::Arguments<'_>) -> ! {
    println!("Bail out! {why}");
    end::machine(End::Failed)
}

fn skip_all(options: &Options<'_>, why: &str) -> Tally {
    let mut tally = Tally::default();
    for (group, check) in chosen(&options.selection) {
        let verdict = Err(Wrong::skip(format_args!("{why}")));
        tap::report(&mut tally, check.rules, group, check.name, &verdict);
    }
    tally
}

/// An L0 that offers what L1 must not use fails discovery; all else is skipped.
fn broken_offer(options: &Options<'_>, base: u32, why: discover::Error) -> Tally {
    let mut tally = Tally::default();
    for (group, check) in chosen(&options.selection) {
        let verdict = match group == discovery::GROUP.name {
            true => Err(Wrong::new(format_args!("the block at {base:#x} is wrong: {why:x?}"))),
            false => Err(Wrong::skip(format_args!("L0's offer is in error"))),
        };
        tap::report(&mut tally, check.rules, group, check.name, &verdict);
    }
    tally
}

fn judge(info: discover::Info, options: Options<'_>, usable: &Usable) -> Tally {
    clock::init(info.limits.tsc_khz);
    runtime::apic::measure_rate();
    user::init();
    let cpus = 1 + smp::start();
    println!("# L0 at {:#x}: features {:?}, {:?}", info.base, info.features, info.transports);
    println!("# L1 has {cpus} CPUs");
    println!("# {:?}", info.limits);
    let mut env = match Env::new(info, options, usable) {
        Ok(env) => env,
        Err(status) => stop(format_args!("the first SETUP answered {status:?}")),
    };
    for (group, check) in chosen(&options.selection) {
        let verdict = env.refresh().map_err(|wrong| wrong.within(format_args!("before the check")));
        let verdict = verdict.and_then(|()| (check.run)(&mut env));
        tap::report(&mut env.tally, check.rules, group, check.name, &verdict);
    }
    env.tally
}
