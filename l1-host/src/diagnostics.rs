//! Tells what there is to know of a guest that has ended: its last exits, and its memory to whoever
//! takes it.
//! May: alloc, port-io. Context: the loop of a CPU, between vCPUs.

use crate::{
    boot,
    core_dump::Description,
    hw::{clock::Clock, cpu, percpu::Cpu, serial},
    log, report,
    trace::{Entry, TOLD},
    vcpu::{Vcpu, stop::Stop},
    vm::{Kind, Vm},
};
use alloc::{boxed::Box, vec::Vec};
use pv_abi::bundle::{CORE_END_PREFIX, CORE_PREFIX, CORE_SECONDS, Guest, TRACE_PREFIX, Trace};
use spin::Mutex;

/// Of a wait, no more than this part of a second counts at a time: the machine may stand still
/// meanwhile, and some clocks go on.
const STEPS: u64 = 1000;
/// One guest's memory is offered at a time: the answer does not say whose it is for.
static OFFER: Mutex<()> = Mutex::new(());

/// `vm` has ended, as guest `number`, and its vCPUs do not run any more.
pub fn ended(
    cpu: &Cpu,
    trace: Trace,
    number: usize,
    guest: &Guest,
    vm: &Vm,
    stop: &Stop,
    vcpus: &[Box<Vcpu>],
) {
    if trace == Trace::Always || trace == Trace::Death && stop.is_death() {
        tell_exits(&cpu.clock, &guest.name, vcpus);
    }
    if guest.core && stop.is_death() {
        offer_memory(cpu, number, guest, vm, vcpus);
    }
}

/// The last exits of all vCPUs, by time.
fn tell_exits(clock: &Clock, name: &str, vcpus: &[Box<Vcpu>]) {
    let mut exits: Vec<(usize, &Entry)> = vcpus
        .iter()
        .flat_map(|vcpu| vcpu.last_exits(TOLD).map(|entry| (vcpu.index, entry)))
        .collect();
    exits.sort_by_key(|(_, entry)| entry.tsc());
    log::raw(format_args!("{TRACE_PREFIX}begin '{name}': {} exits", exits.len()));
    for (vcpu, entry) in exits {
        let at = clock.nanoseconds(boot::ticks_since_start(entry.tsc()));
        let (seconds, rest) = (at / 1_000_000_000, at % 1_000_000_000);
        log::raw(format_args!("{TRACE_PREFIX}{seconds}.{rest:09} vcpu={vcpu} {entry}"));
    }
    log::raw(format_args!("{TRACE_PREFIX}end '{name}'"));
}

/// Says where the guest's memory is and leaves it alone until it has been taken, or for a while.
fn offer_memory(cpu: &Cpu, number: usize, guest: &Guest, vm: &Vm, vcpus: &[Box<Vcpu>]) {
    let registers: Vec<_> = vcpus.iter().map(|vcpu| (vcpu.index, vcpu.registers())).collect();
    let description = Description {
        guest: number,
        name: &guest.name,
        stock: matches!(vm.kind, Kind::Stock(_)),
        ram: vm.env().ram.extents(),
        vcpus: &registers,
    };
    let _one = OFFER.lock();
    while serial::LOG.read(&mut [0]) != 0 {}
    log::raw(format_args!("{CORE_PREFIX}{description}"));
    let taken = wait_until_taken(cpu);
    log::raw(format_args!("{CORE_END_PREFIX}{}", if taken { "taken" } else { "late" }));
    if !taken {
        report!("nobody has taken the memory of guest '{}': there is no core file", guest.name);
    }
}

/// Waits for a break on the log's port, which reads as a byte.
fn wait_until_taken(cpu: &Cpu) -> bool {
    let (most, step) = (cpu.clock.tsc_hz * CORE_SECONDS, cpu.clock.tsc_hz / STEPS);
    let (mut waited, mut last) = (0, cpu::tsc());
    while waited < most {
        if serial::LOG.read(&mut [0]) != 0 {
            return true;
        }
        core::hint::spin_loop();
        let now = cpu::tsc();
        waited += now.saturating_sub(last).min(step);
        last = now;
    }
    false
}
