//! The guest: takes each operation many times, and prints what it took.

use crate::{machine::Machine, operations};
use l2_guest::{
    boot::Boot,
    event::Event,
    hypercall, print, println,
    pv_abi::ext::{Shutdown, counter::Reason},
};

l2_guest::kernel!(main, on_event);

/// Samples of each, unless the command line says otherwise.
const ROUNDS: usize = 101;
/// Most.
const MOST: usize = 2001;

fn main(boot: &'static Boot) -> ! {
    let words = boot.cmdline().split_ascii_whitespace();
    let mut given = words.filter_map(|word| word.strip_prefix("rounds=")?.parse().ok());
    let rounds = given.next().unwrap_or(ROUNDS).clamp(1, MOST);
    let machine = Machine::new();
    print!("{{\"rounds\":{rounds},\"operations\":[");
    for (index, operation) in operations::ALL.iter().enumerate() {
        let mut samples = [0; MOST];
        let samples = &mut samples[..rounds];
        let before = operation.reason.map_or(0, counted);
        for sample in samples.iter_mut() {
            *sample = (operation.sample)(&machine);
        }
        let exits = operation.reason.map_or(0, |reason| counted(reason) - before);
        let enough = operation.reason.is_none() || exits >= rounds as u64;
        assert!(enough, "{} is another kind of exit", operation.name);
        samples.sort_unstable();
        let reason = operation.reason.map_or("", name);
        print!("{}{{", if index == 0 { "" } else { "," });
        print!("\"name\":\"{}\",\"reason\":\"{reason}\",", operation.name);
        print!("\"median\":{},\"worst\":{}}}", samples[rounds / 2], samples[rounds - 1]);
    }
    println!("]}}");
    hypercall::shutdown(Shutdown::PowerOff, "")
}

fn counted(reason: Reason) -> u64 {
    hypercall::counter(reason.counter()).expect("L1 counts its exits")
}

fn name(reason: Reason) -> &'static str {
    Reason::ALL[reason as usize].1
}

/// Events go to the entries of this program.
fn on_event(_: &Event) {}
