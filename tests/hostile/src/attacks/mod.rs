//! The attacks, by what they are about, and the run over them.

mod bases;
mod calls;
mod chain;
mod devices;
mod flags;
mod frames;
mod fuzz;
mod interrupts;
mod memory_limit;
mod modes;
mod msrs;
mod packets;
mod pairs;
mod pvcs;
mod requests;
mod rewrite;
mod rings_smp;
mod selectors;
mod smp;
mod smp_memory;
mod spin;
mod storm;
mod tables;

use crate::{
    die,
    judge::{self, Attack, Group},
    println,
    runtime::{abi, memory, second},
    victim,
};
use core::fmt::Arguments;
use hostile::options::Options;
use pv_abi::ext::{NativeBoot, shutdown};
use suite::{native::uart::Uart, selection::Selection, tally::Tally};

pub use smp::restless;

const GROUPS: &[Group] = &[
    pvcs::GROUP,
    flags::GROUP,
    selectors::GROUP,
    bases::GROUP,
    tables::GROUP,
    modes::GROUP,
    interrupts::GROUP,
    rewrite::GROUP,
    fuzz::GROUP,
    storm::GROUP,
    memory_limit::GROUP,
    spin::GROUP,
    // What these enable stays enabled.
    devices::GROUP,
    smp::GROUP,
    msrs::GROUP,
    calls::GROUP,
];

fn chosen<'a>(
    group: &'static Group,
    selection: &'a Selection<'_>,
) -> impl Iterator<Item = &'static Attack> + 'a {
    group.attacks.iter().filter(|attack| selection.chosen(group.name, attack.name))
}

fn chosen_groups<'a>(selection: &'a Selection<'_>) -> impl Iterator<Item = &'static Group> + 'a {
    GROUPS.iter().filter(|group| chosen(group, selection).next().is_some())
}

/// Does what the command line asks for and ends the VM.
pub fn run(boot: &NativeBoot, cmdline: &str) -> ! {
    abi::restore();
    memory::init(boot);
    second::init(boot);
    spin::set_rate(boot.tsc_hz);
    let options = match Options::parse(cmdline) {
        Ok(options) => options,
        Err(word) => stop(format_args!(
            "`{word}` is no option: only=, skip=, n=, seed=, spin=, list, die=, victim="
        )),
    };
    let selection = &options.selection;
    if let Some(name) = selection.unknown(|one| chosen_groups(one).next().is_some()) {
        stop(format_args!("there is no attack `{name}`: `list` names all"));
    }
    if let Some(seconds) = options.victim {
        victim::watch(boot, seconds)
    }
    if let Some(case) = options.die {
        die::run_case(case, options.seed);
        abi::shutdown(shutdown::POWEROFF)
    }
    if options.list {
        for group in chosen_groups(selection) {
            for attack in chosen(group, selection) {
                println!("{}.{} {}", group.name, attack.name, attack.rules);
            }
        }
        abi::shutdown(shutdown::POWEROFF)
    }
    spin::set_seconds(options.spin);
    let failed = attack_all(&options);
    abi::shutdown(if failed == 0 { shutdown::POWEROFF } else { shutdown::CRASH })
}

/// Makes all attacks that are asked for; returns how many went wrong.
fn attack_all(options: &Options<'_>) -> u32 {
    let selection = &options.selection;
    println!("# Attacks on a hypervisor: n={} seed={}", options.count, options.seed);
    let attacks: usize =
        chosen_groups(selection).map(|group| chosen(group, selection).count()).sum();
    println!("1..{}", attacks + chosen_groups(selection).count());
    let image = memory::image_hash();
    let mut tally = Tally::default();
    for group in chosen_groups(selection) {
        for attack in chosen(group, selection) {
            let count = (options.count * attack.share / 1000).max(1);
            judge::make(&mut tally, group.name, attack, options.seed, count);
        }
        judge::intact(&mut tally, group.name, image);
    }
    let _ = tally.end(&mut Uart);
    tally.all.failed
}

fn stop(why: Arguments<'_>) -> ! {
    println!("Bail out! {why}");
    abi::shutdown(shutdown::CRASH)
}
