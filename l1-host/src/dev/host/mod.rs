//! Drives devices of the machine, for guests.
//! May: alloc. Context: boot; run-loop, irq-off. Input: the machine's devices.
//!
//! `transport` finds them, on PCI (`pci`) or with registers in memory alone (`mmio`), and has them interrupt;
//! `hal` is what the crate `virtio-drivers` wants of L1, `ring` is a queue with buffers. `disk` sends requests and
//! takes the answers, `find` says which of them a guest means; `uplink` sends and receives frames; `entropy` asks for
//! random bytes; `console` has the guests' consoles. A device that misbehaves costs itself: requests of its disk fail,
//! frames by its card are lost, and the log says why.

mod console;
mod disk;
mod entropy;
mod find;
mod hal;
mod mmio;
mod pci;
mod ring;
mod transport;
mod uplink;

pub use console::BUFFER as CONSOLE_BUFFER;
pub use disk::{Disk, Outcome, Refused, Run, Ticket, Work};
pub use find::{Extent, Missing};
pub use mmio::{acknowledge, start as start_mmio, tell as tell_lines};
pub use uplink::Uplink;

use crate::{
    dev::{
        Rest,
        gpt::{self, Table, Wrong},
        virtio::{disk as guest_disk, slots},
    },
    hw::{apic::vector, percpu::Cpu},
    log, sched,
};
use alloc::{boxed::Box, format, string::String, vec::Vec};
use console::Console;
use core::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
};
use disk::Answers;
use entropy::{SEED, Source};
use pv_abi::bundle;
use spin::{Mutex, Once};
use transport::Way;
use virtio_drivers::transport::DeviceType;

/// A disk, and what was on it at the start: guests cannot move each other's partitions.
#[derive(Debug)]
struct Known {
    disk: Disk,
    table: Result<Table, Wrong>,
}

static DISKS: Once<Vec<Known>> = Once::new();
static CONSOLE: Once<Option<Mutex<Console>>> = Once::new();
static ENTROPY: Once<Vec<Mutex<Source>>> = Once::new();
static UPLINKS: Once<Vec<Box<Uplink>>> = Once::new();
/// [`look`] will be called.
static WATCHED: AtomicBool = AtomicBool::new(false);

const fn way(cpu: &Cpu, vector: u8) -> Way {
    Way { apic_id: cpu.apic_id, vector }
}

/// Finds the machine's disks; they interrupt `cpu`.
pub fn start_disks(cpu: &Cpu) {
    let way = way(cpu, vector::DISK);
    DISKS.call_once(|| {
        let disks = transport::each("disk", DeviceType::Block, way, Disk::new);
        let units = transport::each("disk controller", DeviceType::ScsiHost, way, disk::find_units);
        disks.into_iter().chain(units.into_iter().flatten()).map(known).collect()
    });
}

fn known(disk: Disk) -> Known {
    log!("disk {} at {}: {} sectors", disk.serial(), disk.place(), disk.sectors());
    let table = gpt::read(&disk);
    match &table {
        Ok(table) => log!("disk {}: {} partitions", disk.serial(), table.partitions.len()),
        Err(Wrong::Absent) => {}
        Err(wrong) => tell(disk.serial(), wrong),
    }
    Known { disk, table }
}

/// Finds the machine's network cards; they interrupt `cpu`.
pub fn start_uplinks(cpu: &Cpu) {
    let (kind, way) = (DeviceType::Network, way(cpu, vector::NETWORK));
    UPLINKS.call_once(|| {
        transport::each("network card", kind, way, |place, transport, signals| {
            let uplink = Uplink::new(transport, signals)?;
            log!("network card {:02x?} at {place}", uplink.mac());
            Ok(uplink)
        })
    });
}

/// Finds the machine's entropy devices, and asks them for a first seed. They never interrupt.
pub fn start_entropy(cpu: &Cpu) {
    let (kind, way) = (DeviceType::EntropySource, way(cpu, vector::DISK));
    ENTROPY.call_once(|| {
        transport::each("entropy device", kind, way, |_, transport, signals| {
            Source::new(transport, signals).map(Mutex::new)
        })
    });
}

/// True if the machine has an entropy device.
#[must_use]
pub fn has_entropy() -> bool {
    ENTROPY.get().is_some_and(|sources| !sources.is_empty())
}

/// A seed that nobody else has, if an entropy device of the machine has given one.
#[must_use]
pub fn seed() -> Option<[u8; SEED]> {
    ENTROPY.get()?.iter().find_map(|source| source.lock().take())
}

/// Finds the machine's virtio console, the first if there are several; it interrupts `cpu`.
pub fn start_console(cpu: &Cpu) {
    let (kind, way) = (DeviceType::Console, way(cpu, vector::CONSOLE));
    CONSOLE.call_once(|| {
        let found = transport::each("console", kind, way, |place, transport, signals| {
            let console = Console::new(transport, signals)?;
            log!("console at {place}");
            Ok(Mutex::new(console))
        });
        if found.is_empty() {
            log!("the machine lacks a virtio console: guests' consoles are on the serial port");
        }
        found.into_iter().next()
    });
}

fn console() -> Option<&'static Mutex<Console>> {
    CONSOLE.get()?.as_ref()
}

/// Sends `bytes` by the machine's virtio console; false if that is not used, or has failed.
#[must_use]
pub fn send_to_console(bytes: &[u8]) -> bool {
    console().is_some_and(|console| console.lock().send(bytes))
}

/// Waits until the machine's virtio console has taken what was sent, or will not.
pub fn settle_console() {
    if let Some(console) = console() {
        console.lock().settle();
    }
}

/// Copies to `out` what has come by the machine's virtio console; how many bytes.
pub fn read_console(out: &mut [u8; CONSOLE_BUFFER]) -> usize {
    console().map_or(0, |console| console.lock().read(out))
}

/// The first network card that is `wanted`.
#[must_use]
pub fn uplink(wanted: impl Fn(&Uplink) -> bool) -> Option<&'static Uplink> {
    UPLINKS.get()?.iter().map(|uplink| &**uplink).find(|uplink| wanted(uplink))
}

/// Takes the frames that have come by any network card, or some of them.
pub fn receive() -> Rest {
    let mut rest = Rest::Nothing;
    for uplink in UPLINKS.get().into_iter().flatten() {
        if uplink.receive() == Rest::More {
            rest = Rest::More;
        }
    }
    rest
}

/// What `wanted` means on this machine.
///
/// # Errors
/// [`Missing`].
pub fn find(wanted: &bundle::Disk) -> Result<Extent, Missing> {
    find::find(DISKS.get().map_or(&[], |disks| disks), wanted)
}

/// Takes all answers that are there, and gives them to who asked.
pub fn service() {
    let mut answers = Answers::default();
    for disk in all() {
        disk.take_answers(&mut answers);
        let Answers { ended, room } = &answers;
        for (ticket, outcome) in ended {
            if let Some(vm) = ticket.vm.upgrade() {
                guest_disk::complete(&vm, ticket, *outcome);
            }
        }
        // Those that had to wait come first, else they might wait for ever.
        let waited = room.iter().map(|waiter| (&waiter.vm, waiter.slot, None));
        let ended = ended.iter().map(|(ticket, _)| (&ticket.vm, ticket.slot, Some(ticket.queue)));
        for (vm, slot, queue) in waited.chain(ended) {
            if let Some(vm) = vm.upgrade() {
                slots::serve(&vm, slot, queue);
            }
        }
    }
}

/// Logs what came of the frames of each network card.
pub fn tell_uplinks() {
    for uplink in UPLINKS.get().into_iter().flatten() {
        let counts = uplink.counts.each().filter(|(_, value)| *value > 0);
        let text: String = counts.map(|(name, value)| format!(" {name} {value}")).collect();
        log!("network card {:02x?}:{text}", uplink.mac());
    }
}

/// Has [`look`] called, if that is not settled.
fn watch() {
    if !WATCHED.load(Relaxed) && !WATCHED.swap(true, SeqCst) {
        sched::look_at_disks_later();
    }
}

/// Looks whether disks answer as long as requests are under way: one that is dead interrupts nobody.
pub fn look() {
    WATCHED.store(false, SeqCst);
    service();
    if all().any(Disk::is_busy) {
        watch();
    }
}

fn all() -> impl Iterator<Item = &'static Disk> {
    DISKS.get().into_iter().flatten().map(|known| &known.disk)
}

fn tell(serial: &str, what: &dyn core::fmt::Display) {
    log!("disk {serial}: {what}");
}
