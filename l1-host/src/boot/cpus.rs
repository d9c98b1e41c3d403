//! Makes CPUs fit for guests: the first one, and those that it starts.
//! May: alloc, take-frame. Context: boot.

use super::{
    acpi::Firmware,
    ap::{self, Failure},
    entry, smap,
};
use crate::{
    hw::{
        apic::LocalApic,
        clock::Clock,
        features::{self, Features},
        ioapic, mitigations,
        percpu::{self, AreaFrames, Cpu},
        physmap::{self, DIRECT_MAP, STACKS},
        pic, xstate,
    },
    interrupt, log,
    memory::{
        self,
        paging::{
            self, NoMemory, Tree,
            bits::{ADDRESS, D, NX, P, PCD, W},
        },
    },
    sched,
};
use alloc::vec::Vec;
use core::{
    fmt,
    sync::atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};
use pv_abi::addr::Hpa;
use spin::Once;
use switcher::{
    enter::{self, Text},
    layout::{self, MAX_CPUS, area},
};

/// The CPUs that are up.
static CPUS: [Once<Cpu>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];
/// How many.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// What those that are started later need.
static SEATS: Once<Vec<Seat>> = Once::new();

/// Pages of each stack that an IST vector goes on with.
const IST_PAGES: u64 = 16;
/// Pages of the stack of each CPU but the first.
const STACK_PAGES: u64 = 32;
/// Bytes from one such stack to the next: what is between them stays unmapped.
const STACK_STRIDE: u64 = 0x4_0000;

/// Why a CPU is not fit for guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// There is too little memory.
    NoMemory,
    /// Nothing tells the time.
    NoClock,
}

impl From<NoMemory> for Unfit {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "L1 has too little memory to start",
            Self::NoClock => {
                "the machine has no clock: it needs an interval timer (PIT), a real-time clock (RTC), or a \
                 CPU that states the rate of its TSC"
            }
        })
    }
}

/// What a CPU is given before it starts.
#[derive(Debug)]
struct Seat {
    frames: AreaFrames,
    /// L1's root as this CPU has it: all the same but for the VM's half of the switcher window.
    root: Tree,
    window: Tree,
}

/// CPU `index`, if it is up.
#[must_use]
pub fn cpu(index: usize) -> Option<&'static Cpu> {
    CPUS.get(index)?.get()
}

/// Ticks of the TSC in a second; 1 before the first CPU is up.
#[must_use]
pub fn tsc_hz() -> u64 {
    cpu(0).map_or(1, |cpu| cpu.clock.tsc_hz)
}

/// The CPU that this runs on.
///
/// # Panics
/// Before it has been brought up.
#[must_use]
pub fn own() -> &'static Cpu {
    let id = cpu(0).expect("the first one").apic.id();
    let all = (0..MAX_CPUS).filter_map(cpu);
    all.into_iter().find(|cpu| cpu.apic_id == id).expect("it is up")
}

/// CPUs that are up.
#[must_use]
pub fn count() -> usize {
    COUNT.load(Acquire)
}

/// CPUs that have an area in the switcher window: also those that have not come up.
#[must_use]
pub fn areas() -> usize {
    SEATS.get().map_or(0, Vec::len)
}

/// Builds L1's tables, switches to them, and makes the boot CPU fit for guests.
///
/// # Errors
/// [`Unfit`].
pub fn first(
    info: &entry::BootInfo,
    features: &Features,
    firmware: &Firmware,
) -> Result<&'static Cpu, Unfit> {
    let mut devices = alloc::vec![LocalApic::physical_base()];
    devices.extend(firmware.io_apics.iter().map(|apic| u64::from(apic.address)));
    let power_off = firmware.power_off.and_then(|power_off| power_off.in_memory());
    devices.extend(power_off.map(|register| register & !0xfff));
    // The low megabyte stays readable: firmware tables are there. A loader may have put the module into
    // RAM that it calls usable, or not.
    let mut ram = info.given.usable.clone();
    ram.add(0..0x10_0000);
    if let Some(module) = &info.given.module {
        ram.add(module.start & !0xfff..module.end.next_multiple_of(4096));
    }
    if let Some(mailbox) = firmware.mailbox {
        ram.add(mailbox.0..mailbox.0 + 4096);
    }
    let root = paging::build_root(&info.layout, ram.iter().cloned(), &devices, features)?;
    let mut areas = Vec::new();
    for index in 0..firmware.processors.len().max(1) {
        areas.push(area_frames()?);
        if index > 0 {
            let base = STACKS + index as u64 * STACK_STRIDE;
            for page in 0..STACK_PAGES {
                let frame = memory::take_zeroed().ok_or(NoMemory)?;
                root.map(base + page * 4096, frame, 1, W | D | NX)?;
            }
        }
    }
    let shared = paging::build_window(&areas, &info.layout)?;
    let seats = areas.into_iter().map(|frames| seat(frames, &root, &shared));
    let seats = SEATS.try_call_once(|| seats.collect())?;
    entry::activate(&seats[0].root);
    pic::silence();
    ioapic::start(firmware.io_apics.clone());
    let cpu = bring_up(0, &seats[0], features, None)?;
    log!(
        "clock: TSC {} kHz, {:?}, xcr0 {:#x}",
        cpu.clock.tsc_hz / 1000,
        cpu.apic,
        xstate::enabled()
    );
    Ok(cpu)
}

/// Has CPUs stay on a guest's root when they leave the guest: its roots map all of L1 from now on
/// ([`root_entries`]). No guest has run yet.
pub fn stay_on_guests_roots() {
    for &offset in enter::cr3_loads() {
        overwrite_text(offset.into(), &enter::NO_LOAD);
    }
}

/// Puts other code into the switcher's text, which is one for all CPUs. No guest has run yet.
pub fn overwrite_text(offset: u64, code: &[u8]) {
    let root = &SEATS.get().expect("the first CPU has made them")[0].root;
    let address = Text::linked().linked + offset;
    let entry = root.entry_at(address, 1).expect("L1's text is mapped by small pages");
    let page = Hpa(entry.load(Relaxed) & ADDRESS);
    physmap::write(page.offset(address & 0xfff), code);
}

/// A root with what the first CPU's maps.
///
/// # Errors
/// [`NoMemory`].
pub fn fork_root() -> Result<Tree, NoMemory> {
    SEATS.get().ok_or(NoMemory)?[0].root.fork()
}

/// The entries of L1's root but for the switcher window's: slots and values.
pub fn root_entries() -> impl Iterator<Item = (usize, u64)> {
    let root = SEATS.get().map(|seats| physmap::frame(seats[0].root.table));
    let entries = root.into_iter().flatten().map(|entry| entry.load(Relaxed)).enumerate();
    entries.filter(|&(slot, entry)| entry & P != 0 && slot != layout::SLOT)
}

/// Maps a page of a device's registers for L1, on all CPUs.
///
/// # Errors
/// [`NoMemory`].
pub fn map_registers(address: u64, page: Hpa) -> Result<(), NoMemory> {
    let seats = SEATS.get().ok_or(NoMemory)?;
    // What is below the topmost table is the same for all.
    seats[0].root.map(address, page, 1, W | D | NX | PCD)
}

fn area_frames() -> Result<AreaFrames, NoMemory> {
    let mut frames: AreaFrames = [Hpa(0); area::OWN_PAGES.len()];
    for frame in &mut frames {
        *frame = memory::take_zeroed().ok_or(NoMemory)?;
    }
    Ok(frames)
}

fn seat(frames: AreaFrames, root: &Tree, shared: &Tree) -> Result<Seat, NoMemory> {
    let (root, window) = (root.fork()?, shared.fork()?);
    root.link(layout::BASE, &window);
    Ok(Seat { frames, root, window })
}

/// Starts the processors that are not `boot`; those that do not come up are told of.
pub fn start_others(boot: &Cpu, firmware: &Firmware) {
    if firmware.processors.len() < 2 {
        return;
    }
    let way = ap::Way::of(firmware.mailbox);
    let seats = SEATS.get().expect("the first CPU has made them");
    let own = boot.apic.id();
    for &id in firmware.processors.iter().filter(|&&id| id != own) {
        let index = count();
        let stack = STACKS + index as u64 * STACK_STRIDE + STACK_PAGES * 4096;
        match ap::start(way, boot, index, id, seats[index].root.table, stack) {
            Ok(()) => tell_late(index, id),
            Err(Failure::LeftOut(instead)) => {
                log!("the processor with APIC id {id} {instead}: L1 goes on without it");
            }
            Err(Failure::Stuck) => {
                log!("the processor with APIC id {id} is stuck: L1 starts no other");
                break;
            }
        }
    }
    log!("{} CPUs", count());
}

/// CPU `index` is up, for which the processor with APIC id `id` was started. Tells if it is another.
fn tell_late(index: usize, id: u32) {
    if let Some(Cpu { apic_id: late, .. }) = cpu(index)
        && *late != id
    {
        log!("the processor with APIC id {late} starts late: L1 goes on with it, and without {id}");
    }
}

/// A processor that was started, as CPU `index`: `in_step` if its TSC is not behind.
pub fn other(index: usize, in_step: bool) -> ! {
    let (Some(boot), Some(seats)) = (cpu(0), SEATS.get()) else {
        panic!("CPU {index} was started before the first one was up")
    };
    match bring_up(index, &seats[index], &boot.features, Some(boot.clock)) {
        Ok(cpu) => {
            if !in_step {
                log!("cpu {index}: its TSC is behind: clocks of guests may go backwards");
            }
            sched::run(cpu)
        }
        Err(why) => panic!("CPU {index}: {why}"),
    }
}

/// Makes this CPU fit for guests. The first one measures its `clock`.
fn bring_up(
    index: usize,
    seat: &Seat,
    features: &Features,
    clock: Option<Clock>,
) -> Result<&'static Cpu, Unfit> {
    let mut stacks = [0; 4];
    for stack in &mut stacks {
        let base = memory::take_pages(IST_PAGES, 4096).ok_or(NoMemory)?;
        *stack = DIRECT_MAP + base.0 + IST_PAGES * 4096;
    }
    let (block, gdt) =
        percpu::prepare(index, &seat.frames, seat.root.table, interrupt::l1_trap, stacks);
    let bases = entry::load_cpu(index, features);
    smap::follow();
    xstate::init(features);
    let apic = LocalApic::enable(features);
    let clock = clock.or_else(|| Clock::calibrate(apic, features)).ok_or(Unfit::NoClock)?;
    clock.adopt(apic);
    let cpu = CPUS[index].call_once(|| Cpu {
        index,
        features: *features,
        bases,
        block,
        gdt,
        enter: entry::enter(index, mitigations::enable()),
        apic,
        apic_id: apic.id(),
        core: apic.id() >> features::thread_bits(),
        clock,
        window: seat.window,
        last_vm: AtomicU64::new(0),
        last_vcpu: AtomicU64::new(0),
    });
    COUNT.fetch_max(index + 1, Release);
    Ok(cpu)
}
