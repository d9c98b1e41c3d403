//! Start-up: from the loader's hand-over to the first guest.
//! May: alloc, panic. Context: boot.

mod pvh;

use crate::{
    abi_flaw::{Flaw, planted},
    backend::{self, Backend},
    hw::{
        apic::{self, LocalApic, vector},
        clock::Clock,
        cpu, exit,
        features::Features,
        percpu::{self, AreaFrames, Cpu},
        physmap, serial, xstate,
    },
    interrupt, log,
    memory::{self, heap, paging},
    report,
    stats::{Report, Timing},
    vcpu::stop::Stop,
    vm::{build, console::Console},
};
use alloc::{string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use pv_abi::{
    addr::Hpa,
    bundle::{self, Bundle, Error as BundleError},
};
use spin::Once;
use switcher::layout::{MAX_CPUS, area};

/// The CPUs that are up.
static CPUS: [Once<Cpu>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];
/// How many.
static CPU_COUNT: AtomicUsize = AtomicUsize::new(0);
/// The console of the guest that owns the serial port.
static CONSOLE: Once<Arc<Console>> = Once::new();
/// TSC at start, and its ticks per microsecond.
static START: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(1000)];
/// Wall clock: seconds since 1970 when the TSC was START.
static WALL_SECONDS: AtomicU64 = AtomicU64::new(0);

/// Most memory the boot-time heap takes; VMs bring their own.
const HEAP_PAGES: u64 = 512;
/// Pages of each stack of L1's own.
const STACK_PAGES: u64 = 16;

/// CPU `index`, if it is up.
#[must_use]
pub fn cpu(index: usize) -> Option<&'static Cpu> {
    CPUS.get(index)?.get()
}

/// CPUs that are up.
#[must_use]
pub fn cpus() -> usize {
    CPU_COUNT.load(Relaxed)
}

/// The console of the guest that owns the serial port.
#[must_use]
pub fn console() -> Option<&'static Arc<Console>> {
    CONSOLE.get()
}

/// Microseconds since start at TSC `tsc`.
#[must_use]
pub fn since_start(tsc: u64) -> u64 {
    tsc.wrapping_sub(START[0].load(Relaxed)) / START[1].load(Relaxed)
}

/// The wall clock, in nanoseconds since 1970, when the TSC was 0.
#[must_use]
pub fn wall_ns_at_tsc_zero(clock: &Clock) -> u64 {
    let now = WALL_SECONDS.load(Relaxed) * 1_000_000_000;
    if planted(Flaw::WallClockZero) {
        return 0;
    }
    now.wrapping_sub(clock.nanoseconds(START[0].load(Relaxed)))
}

/// Ends L1 before a guest could start.
fn refuse(code: u8, reason: core::fmt::Arguments<'_>) -> ! {
    report!("{reason}");
    exit::machine(code)
}

/// Rust's first function. `info` is what the loader left for us.
fn start(info: &pvh::BootInfo) -> ! {
    START[0].store(cpu::tsc(), Relaxed);
    serial::init();
    log!("Roost {} starts", env!("CARGO_PKG_VERSION"));
    let features = Features::detect();
    log!("cpu: {features:?}");

    for range in info.usable.iter() {
        log!("memory: {:#x}..{:#x}", range.start, range.end);
    }
    let Some(module) = info.module.clone() else {
        refuse(bundle::exit::L1_FAILED, format_args!("L1 was started without a boot module"));
    };
    // Only what the start-up tables map can be used before L1's own are built.
    for range in info.usable.iter() {
        memory::give(range.start.min(pvh::MAPPED)..range.end.min(pvh::MAPPED));
    }
    memory::reserve(0..0x10_0000);
    memory::reserve(info.image_physical.clone());
    memory::reserve(module.clone());
    let heap_start = memory::take_pages(HEAP_PAGES, 4096);
    let Some(heap_start) = heap_start else {
        refuse(bundle::exit::L1_FAILED, format_args!("L1 has too little memory to start"));
    };
    heap::add(heap_start, HEAP_PAGES << 12);

    let (cpu, window) = match bring_up(info, &features) {
        Ok(done) => done,
        Err(paging::NoMemory) => {
            refuse(bundle::exit::L1_FAILED, format_args!("L1 has too little memory to start"))
        }
    };
    for range in info.usable.iter() {
        memory::give(range.start.max(pvh::MAPPED)..range.end.max(pvh::MAPPED));
    }
    log!("memory: {} MiB free", memory::free_bytes() >> 20);

    let file = physmap::read_only(Hpa(module.start), module.end - module.start);
    let bundle = match Bundle::decode(file) {
        Ok(bundle) => bundle,
        Err(error) => refuse(bundle::exit::L1_FAILED, format_args!("{}", complaint(error))),
    };
    WALL_SECONDS.store(bundle.wall_seconds, Relaxed);
    run_guests(cpu, &bundle, file, &window)
}

fn complaint(error: BundleError) -> &'static str {
    match error {
        BundleError::NotABundle => "the boot module is no bundle of the roost tool",
        BundleError::Version(_) => "the bundle was made by another version of the roost tool",
        BundleError::Encoding | BundleError::Blob => "the bundle is damaged",
    }
}

/// Builds L1's tables, switches to them, and makes the boot CPU fit for guests.
fn bring_up(
    info: &pvh::BootInfo,
    features: &Features,
) -> Result<(&'static Cpu, paging::Tree), paging::NoMemory> {
    let devices = [LocalApic::physical_base(), apic::IO_APIC];
    // The low megabyte stays readable: firmware tables are there.
    let ram = core::iter::once(0..0x10_0000)
        .chain(info.usable.iter().cloned())
        .chain(info.module.iter().cloned());
    let root = paging::build_root(&info.layout, ram, &devices, features)?;
    let mut frames: AreaFrames = [Hpa(0); area::OWN_PAGES.len()];
    for frame in &mut frames {
        *frame = memory::take_zeroed().ok_or(paging::NoMemory)?;
    }
    let window = paging::build_window(&[frames], &info.layout)?;
    root.link(switcher::layout::BASE, &window);
    pvh::activate(&root);

    let mut stacks = [0; 4];
    for stack in &mut stacks {
        let base = memory::take_pages(STACK_PAGES, 4096).ok_or(paging::NoMemory)?;
        *stack = physmap::DIRECT_MAP + base.0 + STACK_PAGES * 4096;
    }
    let (block, gdt) = percpu::prepare(0, &frames, root.table, interrupt::l1_trap, stacks);
    let bases = pvh::load_cpu(0, features);
    let xcr0 = xstate::init(features);
    let local_apic = LocalApic::enable(features);
    let clock = Clock::calibrate(local_apic, features);
    START[1].store((clock.tsc_hz / 1_000_000).max(1), Relaxed);
    log!("clock: TSC {} kHz, {local_apic:?}, xcr0 {xcr0:#x}", clock.tsc_hz / 1000);

    let cpu = CPUS[0].call_once(|| Cpu {
        index: 0,
        features: *features,
        bases,
        block,
        gdt,
        enter: pvh::enter(0),
        apic: local_apic,
        clock,
    });
    CPU_COUNT.store(1, Relaxed);
    Ok((cpu, window))
}

/// What a guest's command line says of L1's checks of itself, if there are any.
fn choose_checks(cmdline: &str) -> Result<(), String> {
    #[cfg(any(feature = "tlb-model", feature = "dirty-check", feature = "flaws"))]
    let unknown = |names| alloc::format!("there is no such flaw; take one of: {names}");
    #[cfg(feature = "tlb-model")]
    crate::vcpu::flaw::FLAWS.plant(cmdline).map_err(unknown)?;
    #[cfg(feature = "flaws")]
    crate::abi_flaw::FLAWS.plant(cmdline).map_err(unknown)?;
    #[cfg(feature = "dirty-check")]
    {
        crate::vm::dirty_flaw::FLAWS.plant(cmdline).map_err(unknown)?;
        crate::vcpu::dirty::choose(cmdline)?;
    }
    let _ = cmdline;
    Ok(())
}

fn run_guests(cpu: &'static Cpu, bundle: &Bundle, file: &[u8], window: &paging::Tree) -> ! {
    let [guest] = bundle.guests.as_slice() else {
        refuse(bundle::exit::L1_FAILED, format_args!("this version of L1 runs exactly one guest"));
    };
    if let Err(error) = choose_checks(&guest.cmdline) {
        refuse(bundle::exit::L1_FAILED, format_args!("{error}"));
    }
    let context = build::Context {
        file,
        window,
        clock: cpu.clock,
        wall_seconds: bundle.wall_seconds,
        wall_tsc: START[0].load(Relaxed),
        physical_bits: cpu.features.physical_bits,
        largest_page: if cpu.features.pages_1g { 3 } else { 2 },
    };
    let timing = if bundle.stats { Timing::On } else { Timing::Off };
    let mut machine = match backend::build(guest, &context, cpu, timing) {
        Ok(built) => built,
        Err(error) => refuse(
            bundle::exit::BOOT_FAILED,
            format_args!("guest '{}' could not be started: {error}", guest.name),
        ),
    };
    log!(
        "guest '{}': {} MiB, {} MiB left to L1",
        guest.name,
        guest.memory >> 20,
        memory::free_bytes() >> 20
    );
    CONSOLE.call_once(|| machine.console());
    serial::CONSOLE.interrupt_on_receive();
    interrupt::receive();
    apic::route(serial::CONSOLE_IRQ, vector::CONSOLE, cpu.apic.id());

    let stop = machine.run(cpu);
    finish(cpu, &guest.name, machine.as_ref(), &stop, bundle.stats)
}

fn finish(cpu: &Cpu, name: &str, machine: &dyn Backend, stop: &Stop, stats: bool) -> ! {
    log!("guest '{name}' {stop}");
    if *stop != Stop::PowerOff {
        report!("guest '{name}' {stop}");
    }
    if stop.is_death() {
        machine.report_registers();
    }
    let violations = machine.violations();
    if violations != 0 {
        report!("L1 failed: {violations} entries of guest roots are not on the allow-list");
        exit::machine(bundle::exit::L1_FAILED);
    }
    if stats {
        let counters: Vec<(&str, u64)> = machine.counters(cpu);
        let report =
            Report { name, exits: machine.exits(), tsc_hz: cpu.clock.tsc_hz, counters: &counters };
        log::raw(format_args!("{}{report}", bundle::STATS_PREFIX));
    }
    exit::machine(stop.exit_code())
}
