//! Starts the guests, sees them end, and ends the machine with the last.
//! May: alloc, take-frame. Context: boot; run-loop at the end of a guest.

use crate::{
    backend::{self, Built},
    boot::{self, cpus},
    console::{self, Action, GuestId},
    hw::{
        apic::{self, vector},
        exit,
        percpu::Cpu,
        serial,
    },
    interrupt, log, memory, report, sched,
    stats::{ExitStats, Report, Timing},
    vcpu::{Vcpu, stop::Stop},
    vm::{
        Vm,
        build::{Context, Start},
        roots,
    },
};
use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{
    AtomicU8, AtomicUsize,
    Ordering::{AcqRel, Relaxed},
};
use pv_abi::bundle::{self, Bundle, Guest};
use spin::{Mutex, Once};

/// Guests that run.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// The value to end the machine with: the worst of all guests'.
static WORST: AtomicU8 = AtomicU8::new(bundle::exit::POWEROFF);
/// Exits are timed, and told of when a guest ends.
static STATS: Once<bool> = Once::new();
/// The guests that L1 runs, by their places at the console.
static GUESTS: Mutex<Vec<(GuestId, Weak<Vm>)>> = Mutex::new(Vec::new());

/// Ends L1 because a guest could not be started.
fn refuse(guest: &Guest, error: &dyn core::fmt::Display) -> ! {
    boot::refuse(
        bundle::exit::BOOT_FAILED,
        format_args!("guest '{}' could not be started: {error}", guest.name),
    )
}

/// Builds all guests and starts their first vCPUs; then this CPU runs vCPUs for ever.
pub fn start(cpu: &'static Cpu, bundle: &Bundle, context: &Context<'_>) -> ! {
    let stats = *STATS.call_once(|| bundle.stats);
    let timing = if stats { Timing::On } else { Timing::Off };
    RUNNING.store(bundle.guests.len(), Relaxed);
    console::mux().set_mode(bundle.console);
    let mut ready = Vec::new();
    for guest in &bundle.guests {
        match backend::build(guest, context, bundle.guests.len()) {
            Ok(Built::Shadow(vm, start)) => {
                tell(guest);
                let id = console::mux().add(&guest.name, vm.console.clone());
                GUESTS.lock().push((id, Arc::downgrade(&vm)));
                ready.push((guest, vm, start));
            }
            Ok(Built::Assisted(mut machine)) => {
                tell(guest);
                let id = console::mux().add(&guest.name, machine.console.clone());
                listen(cpu);
                let stop = machine.run(cpu);
                tell_end(id, &guest.name, &stop);
                if stats {
                    tell_stats(&guest.name, &ExitStats::new(Timing::Off), &machine.counters());
                }
                one_less(stop.exit_code());
            }
            Err(error) => refuse(guest, &error),
        }
    }
    listen(cpu);
    for (guest, vm, start) in ready {
        if let Err(error) = launch(cpu, &vm, start, timing) {
            refuse(guest, &error);
        }
    }
    sched::run(cpu)
}

fn tell(guest: &Guest) {
    log!(
        "guest '{}': {} MiB, {} MiB left to L1",
        guest.name,
        guest.memory >> 20,
        memory::free_bytes() >> 20
    );
}

/// Gives the VM its vCPUs and starts the first.
fn launch(
    cpu: &Cpu,
    vm: &Arc<Vm>,
    start: Start,
    timing: Timing,
) -> Result<(), crate::vm::build::Error> {
    let vcpus = (0..vm.vcpus)
        .map(|index| Vcpu::new(cpu, vm.clone(), index, timing).map(Box::new))
        .collect::<Result<Vec<_>, _>>()?;
    vm.seat(vcpus);
    assert!(vm.start_vcpu(0, start), "the first vCPU was off");
    Ok(())
}

/// Listens to the serial port from now on.
fn listen(cpu: &Cpu) {
    serial::CONSOLE.interrupt_on_receive();
    interrupt::receive();
    apic::route(serial::CONSOLE_IRQ, vector::CONSOLE, cpu.apic_id);
}

/// Passes what was typed on to the consoles, and does what the user asks for there.
pub fn input(bytes: &[u8]) {
    let actions = console::mux().input(bytes);
    let guests = GUESTS.lock().clone();
    for (id, vm) in guests.iter().filter_map(|(id, vm)| Some((*id, vm.upgrade()?))) {
        if actions.contains(&Action::Stop(id)) {
            vm.end(Stop::Killed, 0);
        } else {
            vm.kick(0);
        }
    }
}

/// The last vCPU of `vm` does not run any more.
pub fn ended(vm: &Arc<Vm>) {
    let Some((stop, index, vcpus)) = vm.how_it_ended() else { return };
    let id = GUESTS
        .lock()
        .iter()
        .find(|(_, other)| other.as_ptr() == Arc::as_ptr(vm))
        .map(|&(id, _)| id);
    tell_end(id.unwrap_or(GuestId(0)), &vm.name, &stop);
    if stop.is_death()
        && let Some(vcpu) = vcpus.iter().find(|vcpu| vcpu.index == index)
    {
        vcpu.report_registers();
    }
    let violations = roots::check(vm);
    if violations != 0 {
        report!("L1 failed: {violations} entries of guest roots are not on the allow-list");
        exit::machine(bundle::exit::L1_FAILED);
    }
    if STATS.get() == Some(&true) {
        let mut exits = ExitStats::new(Timing::On);
        let mut counters = Vec::<(&'static str, u64)>::new();
        for vcpu in &vcpus {
            exits.add(vcpu.exits());
            for (name, value) in vcpu.counters() {
                match counters.iter_mut().find(|(other, _)| *other == name) {
                    Some((_, sum)) => *sum += value,
                    None => counters.push((name, value)),
                }
            }
        }
        tell_stats(&vm.name, &exits, &counters);
    }
    // With them goes all that still refers to the VM.
    for mut vcpu in vcpus {
        vcpu.dismantle();
    }
    one_less(stop.exit_code());
}

fn tell_end(id: GuestId, name: &str, stop: &Stop) {
    console::mux().ended(id, stop);
    log!("guest '{name}' {stop}");
    if *stop != Stop::PowerOff {
        report!("guest '{name}' {stop}");
    }
}

fn tell_stats(name: &str, exits: &ExitStats, counters: &[(&str, u64)]) {
    let tsc_hz = cpus::cpu(0).map_or(1, |cpu| cpu.clock.tsc_hz);
    let report = Report { name, exits, tsc_hz, counters };
    log::raw(format_args!("{}{report}", bundle::STATS_PREFIX));
}

/// A guest has ended; with the last one the machine does.
fn one_less(code: u8) {
    let worst = WORST.fetch_max(code, AcqRel).max(code);
    if RUNNING.fetch_sub(1, AcqRel) == 1 {
        console::mux().finish();
        exit::machine(worst);
    }
}
