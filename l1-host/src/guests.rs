//! Starts the guests, sees them end, starts them again if that is wanted, and ends the machine with the
//! last.
//! May: alloc, take-frame. Context: boot; the loop of a CPU, between vCPUs.

use crate::{
    backend::{self, Built},
    boot::{self, cpus},
    console::{self, Action, GuestId},
    dev::{entropy, host, switch::network},
    diagnostics,
    hw::{apic::vector, cpu, exit, ioapic, percpu::Cpu, serial},
    interrupt, live, log, memory, pti, report, sched,
    stats::{ExitStats, Report, Timing, VcpuReport, add_counter},
    vcpu::{Vcpu, stop::Stop},
    vm::{
        Vm,
        build::{self, Context, Start},
        roots,
    },
};
use alloc::{
    boxed::Box,
    format,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    fmt::Display,
    sync::atomic::{
        AtomicBool, AtomicU8, AtomicUsize,
        Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
    },
};
use pv_abi::bundle::{self, Bundle, ConsolePort, DeviceKind, Guest, Restart, Siblings, Trace};
use spin::{Mutex, Once};

/// What the user has asked for, and what building a guest needs.
#[derive(Debug)]
struct Host {
    bundle: Bundle,
    context: Context<'static>,
}

static HOST: Once<Host> = Once::new();
/// Guests that run, or will again.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// The value to end the machine with: the worst of all guests'.
static WORST: AtomicU8 = AtomicU8::new(bundle::exit::POWEROFF);
/// The guests that L1 runs, by their numbers in the bundle, which are their places at the console.
static GUESTS: Mutex<Vec<(GuestId, Weak<Vm>)>> = Mutex::new(Vec::new());
/// VMs whose vCPUs do not run any more.
static ENDED: Mutex<Vec<Arc<Vm>>> = Mutex::new(Vec::new());
static ANY_ENDED: AtomicBool = AtomicBool::new(false);

/// Builds all guests and starts their first vCPUs; then this CPU runs vCPUs for ever.
pub fn start(cpu: &'static Cpu, bundle: Bundle, context: Context<'static>) -> ! {
    let host = HOST.call_once(|| Host { bundle, context });
    let guests = &host.bundle.guests;
    RUNNING.store(guests.len(), Relaxed);
    console::mux().set_mode(host.bundle.console);
    if host.bundle.siblings != Siblings::AnyGuests {
        sched::run_one_vm_a_core();
    }
    if host.bundle.siblings == Siblings::Kick {
        sched::keep_l1_alone();
    }
    pti::choose(host.bundle.pti);
    if host.bundle.port == ConsolePort::Virtio {
        host::start_console(cpu);
    }
    live::begin(host.bundle.stats_every, &cpu.clock, cpu::tsc());
    if guests.iter().any(|guest| !guest.disks.is_empty()) {
        host::start_disks(cpu);
        keep_apart(guests);
    }
    if host.bundle.networks.iter().any(|network| network.uplink.is_some()) {
        host::start_uplinks(cpu);
    }
    network::start(&host.bundle.networks);
    let wants_entropy =
        |guest: &Guest| guest.devices.iter().any(|device| device.kind == DeviceKind::Entropy);
    if guests.iter().any(wants_entropy) {
        host::start_entropy(cpu);
        entropy::start();
    }
    let mut ready = Vec::new();
    for (number, guest) in guests.iter().enumerate() {
        match backend::build(guest, &host.context, guests.len()) {
            Ok(Built::Shadow(vm, start)) => {
                tell_start(guest);
                let id = console::mux().add(&guest.name, vm.console.clone());
                GUESTS.lock().push((id, Arc::downgrade(&vm)));
                ready.push((guest, vm, start));
            }
            Ok(Built::Assisted(mut machine)) => {
                tell_start(guest);
                let id = console::mux().add(&guest.name, machine.console.clone());
                listen(cpu);
                let stop = machine.run(cpu);
                console::mux().ended(id, &stop);
                tell_end(&guest.name, &stop);
                tell_stats(number, &ExitStats::new(Timing::Off), &machine.counters(), &[]);
                one_less(stop.exit_code());
            }
            Err(error) => refuse(guest, &error),
        }
    }
    for (guest, vm, start) in ready {
        if let Err(error) = launch(cpu, &vm, start) {
            refuse(guest, &error);
        }
    }
    listen(cpu);
    sched::run(cpu)
}

/// Guests share no sectors that one of them may write. What they cannot have is told when they are built.
fn keep_apart(guests: &[Guest]) {
    let mut taken = Vec::<(&Guest, host::Extent)>::new();
    for guest in guests {
        for (disk, extent) in
            guest.disks.iter().filter_map(|disk| Some((disk, host::find(disk).ok()?)))
        {
            if let Some((other, _)) = taken.iter().find(|(_, other)| extent.disturbs(other)) {
                let (name, other) = (&disk.name, &other.name);
                let words = "is on sectors of a disk of guest";
                let why = format!("its disk '{name}' {words} '{other}': have both read only");
                refuse(guest, &why);
            }
            taken.push((guest, extent));
        }
    }
}

/// Ends L1 because a guest could not be started.
fn refuse(guest: &Guest, error: &dyn Display) -> ! {
    boot::refuse(
        bundle::exit::BOOT_FAILED,
        format_args!("guest '{}' could not be started: {error}", guest.name),
    )
}

/// Gives the VM its vCPUs and starts the first.
fn launch(cpu: &Cpu, vm: &Arc<Vm>, start: Start) -> Result<(), build::Error> {
    let timing = if is_watched() { Timing::On } else { Timing::Off };
    let mut vcpus = (0..vm.vcpus)
        .map(|index| Vcpu::new(cpu, vm.clone(), index, timing).map(Box::new))
        .collect::<Result<Vec<_>, _>>()?;
    if trace() != Trace::Off {
        vcpus.iter_mut().for_each(|vcpu| vcpu.trace());
    }
    vm.seat(vcpus);
    assert!(vm.start_vcpu(0, start), "the first vCPU was off");
    Ok(())
}

/// Listens to the console's port from now on.
fn listen(cpu: &Cpu) {
    serial::CONSOLE.interrupt_on_receive();
    interrupt::receive();
    if !ioapic::route(serial::CONSOLE_IRQ, vector::CONSOLE, cpu.apic_id) {
        log!("the serial port cannot interrupt: nothing that is typed there is seen");
    }
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

/// The last vCPU of `vm` does not run any more. A CPU that has nothing else on its hands sees to the
/// rest ([`bury`]).
pub fn ended(vm: Arc<Vm>) {
    ENDED.lock().push(vm);
    ANY_ENDED.store(true, Release);
    // This CPU may be in the middle of another guest.
    sched::kick_self();
}

/// A device of a VM that has ended uses no memory any more.
pub fn look_again() {
    ANY_ENDED.store(true, Release);
    sched::kick_self();
}

/// Some VM has ended and is not seen to yet.
#[inline]
pub fn any_to_bury() -> bool {
    ANY_ENDED.load(Acquire)
}

/// Sees to the VMs that have ended: tells how, frees their memory, starts them again. The caller holds
/// none of them. Those whose memory a device still uses are left for later ([`look_again`]).
pub fn bury(cpu: &Cpu) {
    if !any_to_bury() {
        return;
    }
    let quiet: Vec<_> = {
        let mut ended = ENDED.lock();
        // Before devices are looked at: one that lets go afterwards says so again.
        ANY_ENDED.store(false, SeqCst);
        ended.extract_if(.., |vm| vm.devices.end()).collect()
    };
    for vm in quiet {
        bury_one(cpu, vm);
    }
}

fn bury_one(cpu: &Cpu, vm: Arc<Vm>) {
    let (Some(host), Some((stop, index, mut vcpus))) = (HOST.get(), vm.how_it_ended()) else {
        return;
    };
    vcpus.sort_by_key(|vcpu| vcpu.index);
    let place = |guests: &[(GuestId, Weak<Vm>)]| {
        guests.iter().find(|(_, other)| other.as_ptr() == Arc::as_ptr(&vm)).map(|&(id, _)| id)
    };
    let Some(id) = place(&GUESTS.lock()) else { return };
    let guest = &host.bundle.guests[id.0];
    let again = wants_restart(guest.restart, &stop);
    if !again {
        console::mux().ended(id, &stop);
    }
    // A restart that was asked for and is given is nothing to report.
    if again && stop == Stop::Reboot {
        log!("guest '{}' {stop}", guest.name);
    } else {
        tell_end(&guest.name, &stop);
    }
    if stop.is_death()
        && let Some(vcpu) = vcpus.iter().find(|vcpu| vcpu.index == index)
    {
        vcpu.report_registers();
    }
    diagnostics::ended(cpu, trace(), id.0, guest, &vm, &stop, &vcpus);
    let found = roots::check(&vm);
    log!("{found}");
    if found.violations != 0 {
        report!("L1 failed: {} entries of guest roots are not on the allow-list", found.violations);
        exit::machine(bundle::exit::L1_FAILED);
    }
    let (exits, mut counters) = sum(&vcpus);
    counters.extend(vm.devices.counters());
    let each: Vec<_> = vcpus
        .iter()
        .map(|vcpu| VcpuReport { exits: vcpu.exits(), counters: vcpu.counters() })
        .collect();
    tell_stats(id.0, &exits, &counters, &each);
    #[cfg(feature = "switcher-traps")]
    crate::traps::report();
    // With them goes all that still refers to the VM.
    for mut vcpu in vcpus {
        vcpu.dismantle();
    }
    // Others look at it for a moment only.
    while Arc::strong_count(&vm) > 1 {
        core::hint::spin_loop();
    }
    drop(vm);
    if again {
        start_again(cpu, id, guest, &stop);
    } else {
        one_less(stop.exit_code());
    }
}

const fn wants_restart(policy: Restart, stop: &Stop) -> bool {
    match policy {
        Restart::Never => false,
        Restart::OnReboot => matches!(stop, Stop::Reboot),
        // What its user has stopped stays so.
        Restart::OnFailure => !matches!(stop, Stop::PowerOff | Stop::Killed),
        Restart::Always => !matches!(stop, Stop::Killed),
    }
}

fn start_again(cpu: &Cpu, id: GuestId, guest: &Guest, stop: &Stop) {
    let Some(host) = HOST.get() else { return };
    let started = build::build(guest, &host.context).and_then(|(vm, start)| {
        console::mux().restarted(id, stop, vm.console.clone());
        tell_start(guest);
        if let Some(slot) = GUESTS.lock().iter_mut().find(|(other, _)| *other == id) {
            slot.1 = Arc::downgrade(&vm);
        }
        launch(cpu, &vm, start)
    });
    if let Err(error) = started {
        report!("guest '{}' could not be started again: {error}", guest.name);
        console::mux().ended(id, stop);
        one_less(bundle::exit::BOOT_FAILED);
    }
}

/// What all vCPUs of a guest have counted.
fn sum(vcpus: &[Box<Vcpu>]) -> (ExitStats, Vec<(&'static str, u64)>) {
    let mut exits = ExitStats::new(Timing::On);
    let mut counters = Vec::new();
    for vcpu in vcpus {
        exits.add(vcpu.exits());
        vcpu.counters().into_iter().for_each(|counter| add_counter(&mut counters, counter));
    }
    (exits, counters)
}

fn tell_start(guest: &Guest) {
    log!(
        "guest '{}': {} MiB, {} MiB left to L1",
        guest.name,
        guest.memory >> 20,
        memory::free_bytes() >> 20
    );
}

fn tell_end(name: &str, stop: &Stop) {
    log!("guest '{name}' {stop}");
    if *stop != Stop::PowerOff {
        report!("guest '{name}' {stop}");
    }
}

/// Somebody wants to know more of exits than their number.
fn is_watched() -> bool {
    HOST.get().is_some_and(|host| host.bundle.stats) || trace() != Trace::Off || live::is_on()
}

fn trace() -> Trace {
    HOST.get().map_or(Trace::Off, |host| host.bundle.trace)
}

/// Calls `visit` with the guests that L1 runs, and their names.
pub fn each_running(mut visit: impl FnMut(&str, &Vm)) {
    let (Some(host), guests) = (HOST.get(), GUESTS.lock().clone()) else { return };
    for (id, vm) in guests {
        if let Some(vm) = vm.upgrade() {
            visit(&host.bundle.guests[id.0].name, &vm);
        }
    }
}

fn tell_stats(
    number: usize,
    exits: &ExitStats,
    counters: &[(&str, u64)],
    vcpus: &[VcpuReport<'_>],
) {
    let (Some(host), Some(cpu)) = (HOST.get(), cpus::cpu(0)) else { return };
    if host.bundle.stats {
        let name = &host.bundle.guests[number].name;
        let report = Report { name, exits, tsc_hz: cpu.clock.tsc_hz, counters, vcpus };
        log::raw(format_args!("{}{report}", bundle::STATS_PREFIX));
    }
}

/// A guest has ended for good; with the last one the machine does.
fn one_less(code: u8) {
    let worst = WORST.fetch_max(code, AcqRel).max(code);
    if RUNNING.fetch_sub(1, AcqRel) == 1 {
        console::mux().finish();
        host::tell_uplinks();
        host::tell_lines();
        host::settle_console();
        exit::machine(worst);
    }
}
