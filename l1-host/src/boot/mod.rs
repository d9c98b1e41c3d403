//! Start-up: from the loader's hand-over to the first guest.
//! May: alloc, panic. Context: boot.

mod acpi;
mod ap;
pub mod cpus;
mod entry;
mod mp_table;
mod multiboot2;
mod pvh;
mod smap;
mod virtio_mmio;

use crate::{
    abi_flaw::{Flaw, planted},
    guests,
    hw::{clock::Clock, cpu, exit, features::Features, percpu::Cpu, physmap, rtc, serial},
    log,
    memory::{self, heap},
    report,
    vm::build,
};
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use pv_abi::{
    addr::Hpa,
    bundle::{self, Bundle, Error as BundleError, Guest},
};

use cpus::Unfit;
pub use cpus::{cpu, tsc_hz};
use entry::Loader;

/// TSC at start, and its ticks per microsecond.
static START: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(1000)];
/// Wall clock: seconds since 1970 when the TSC was START.
static WALL_SECONDS: AtomicU64 = AtomicU64::new(0);

/// Most memory the boot-time heap takes; VMs bring their own.
const HEAP_PAGES: u64 = 512;

/// Microseconds since start at TSC `tsc`.
#[must_use]
pub fn since_start(tsc: u64) -> u64 {
    ticks_since_start(tsc) / START[1].load(Relaxed)
}

/// Ticks since start at TSC `tsc`.
#[must_use]
pub fn ticks_since_start(tsc: u64) -> u64 {
    tsc.wrapping_sub(START[0].load(Relaxed))
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
pub fn refuse(code: u8, reason: core::fmt::Arguments<'_>) -> ! {
    report!("{reason}");
    exit::machine(code)
}

/// Ends L1 because it cannot start.
fn give_up(why: Unfit) -> ! {
    refuse(bundle::exit::L1_FAILED, format_args!("{why}"))
}

/// Rust's first function. `info` is what the loader left for us.
fn start(info: &entry::BootInfo) -> ! {
    START[0].store(cpu::tsc(), Relaxed);
    serial::init();
    log!("Roost {} starts", env!("CARGO_PKG_VERSION"));
    let features = Features::detect();
    log!("cpu: {features:?}");

    if info.loader == Loader::Multiboot2 || !serial::LOG.is_there() {
        log::report_to_console();
    }
    if info.loader == Loader::Pvh {
        // A machine monitor that offers no way to switch its machine off ends with a reset.
        exit::end_by_reset();
    }
    let entry::Given { usable, module, acpi, command_line } = &info.given;
    for range in usable.iter() {
        log!("memory: {:#x}..{:#x}", range.start, range.end);
    }
    if !command_line.is_empty() {
        log!("command line: {}", command_line.trim());
    }
    if command_line.split_ascii_whitespace().any(|word| word == bundle::RESET_AT_END) {
        exit::start_again();
    }
    // First of all: it is needed to refuse.
    let reach = physmap::DIRECT_MAP_SIZE.min(1 << features.physical_bits);
    let mut firmware = acpi::read(*acpi, reach);
    if firmware.processors.is_empty() {
        mp_table::read(&mut firmware);
    }
    log!("power: {:x?}", firmware.power_off);
    if let Some(power_off) = firmware.power_off {
        exit::remember(power_off);
    }
    let Some(module) = module.clone() else {
        refuse(
            bundle::exit::L1_FAILED,
            format_args!("L1 was started without a boot module: give it one that roost has packed"),
        );
    };
    // Only what the start-up tables map can be used before L1's own are built.
    for range in usable.iter() {
        memory::give(range.start.min(entry::MAPPED)..range.end.min(entry::MAPPED));
    }
    memory::reserve(0..0x10_0000);
    memory::reserve(info.image_physical.clone());
    memory::reserve(module.clone());
    let heap_start = memory::take_pages(HEAP_PAGES, 4096);
    let Some(heap_start) = heap_start else { give_up(Unfit::NoMemory) };
    heap::add(heap_start, HEAP_PAGES << 12);

    if firmware.mailbox.is_none() && !ap::can_start(usable.iter()) {
        firmware.processors.truncate(1);
    }
    let cpu = match cpus::first(info, &features, &firmware) {
        Ok(cpu) => cpu,
        Err(unfit) => give_up(unfit),
    };
    for range in usable.iter() {
        memory::give(range.start.max(entry::MAPPED)..range.end.max(entry::MAPPED));
    }
    log!("memory: {} MiB free", memory::free_bytes() >> 20);

    let file = physmap::read_only(Hpa(module.start), module.end - module.start);
    let bundle = match Bundle::decode(file) {
        Ok(bundle) => bundle,
        Err(error) => refuse(bundle::exit::L1_FAILED, format_args!("{}", complaint(error))),
    };
    WALL_SECONDS.store(wall_seconds(&bundle), Relaxed);
    START[1].store((cpu.clock.tsc_hz / 1_000_000).max(1), Relaxed);
    if let Err(no_memory) = smap::start(cpu) {
        give_up(no_memory.into());
    }
    virtio_mmio::find(info, &firmware, reach);
    cpus::start_others(cpu, &firmware);
    run_guests(cpu, bundle, file)
}

/// A bundle that does not say what time it is was packed to be started any time.
fn wall_seconds(bundle: &Bundle) -> u64 {
    match bundle.wall_seconds {
        0 => rtc::seconds().unwrap_or_else(|| {
            log!("the machine has no clock: guests start in 1970");
            0
        }),
        seconds => seconds,
    }
}

fn complaint(error: BundleError) -> &'static str {
    match error {
        BundleError::NotABundle => "the boot module is no bundle of the roost tool",
        BundleError::Version(_) => "the bundle was made by another version of the roost tool",
        BundleError::Encoding | BundleError::Blob => "the bundle is damaged",
    }
}

/// What a guest's command line says of L1's checks of itself, if there are any.
fn choose_checks(guest: &Guest) -> Result<(), String> {
    #[cfg(any(
        feature = "tlb-model",
        feature = "dirty-check",
        feature = "flaws",
        feature = "switcher-traps"
    ))]
    let unknown = |names| alloc::format!("there is no such flaw; take one of: {names}");
    #[cfg(feature = "tlb-model")]
    crate::vcpu::flaw::FLAWS.plant(&guest.cmdline).map_err(unknown)?;
    #[cfg(feature = "flaws")]
    crate::abi_flaw::FLAWS.plant(&guest.cmdline).map_err(unknown)?;
    #[cfg(feature = "dirty-check")]
    {
        crate::vm::dirty_flaw::FLAWS.plant(&guest.cmdline).map_err(unknown)?;
        crate::vcpu::dirty::choose(&guest.cmdline, guest.vcpus)?;
    }
    #[cfg(feature = "switcher-traps")]
    crate::traps::choose(&guest.cmdline).map_err(unknown)?;
    let _ = guest;
    Ok(())
}

fn run_guests(cpu: &'static Cpu, bundle: Bundle, file: &'static [u8]) -> ! {
    for guest in &bundle.guests {
        if let Err(error) = choose_checks(guest) {
            refuse(bundle::exit::L1_FAILED, format_args!("{error}"));
        }
    }
    let context = build::Context {
        file,
        window: cpu.window,
        clock: cpu.clock,
        wall_seconds: WALL_SECONDS.load(Relaxed),
        wall_tsc: START[0].load(Relaxed),
        physical_bits: cpu.features.physical_bits,
        largest_page: if cpu.features.pages_1g { 3 } else { 2 },
    };
    guests::start(cpu, bundle, context)
}
