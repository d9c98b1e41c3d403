//! Drives disks and network cards of the machine, for guests.
//! May: alloc. Context: boot; run-loop, irq-off. Input: the machine's devices.
//!
//! `pci` finds them and has them interrupt, `hal` is what the crate `virtio-drivers` wants of L1,
//! `disk` sends requests and takes the answers, `uplink` sends and receives frames. A device that misbehaves
//! costs itself: requests of its disk fail, frames by its card are lost, and the log says why.

mod disk;
mod hal;
mod pci;
mod uplink;

pub use disk::{Disk, Outcome, PIECES, Refused, Run, Ticket, Work};
pub use uplink::Uplink;

use crate::{
    dev::{Rest, switch::Mac, virtio::disk as guest_disk},
    hw::{apic::vector, percpu::Cpu},
    log,
};
use alloc::{boxed::Box, format, string::String, vec::Vec};
use spin::Once;
use virtio_drivers::transport::DeviceType;

static DISKS: Once<Vec<Box<Disk>>> = Once::new();
static UPLINKS: Once<Vec<Box<Uplink>>> = Once::new();

/// Finds the machine's disks; they interrupt `cpu`.
pub fn start_disks(cpu: &Cpu) {
    DISKS.call_once(|| {
        pci::each(
            "disk",
            DeviceType::Block,
            cpu.apic_id,
            vector::DISK,
            |place, transport, route| {
                let disk = Disk::new(transport, route)?;
                log!("disk {} at {place}: {} sectors", disk.serial(), disk.sectors());
                Ok(disk)
            },
        )
    });
}

/// Finds the machine's network cards; they interrupt `cpu`.
pub fn start_uplinks(cpu: &Cpu) {
    let (kind, vector) = (DeviceType::Network, vector::NETWORK);
    UPLINKS.call_once(|| {
        pci::each("network card", kind, cpu.apic_id, vector, |place, transport, route| {
            let uplink = Uplink::new(transport, route)?;
            log!("network card {:02x?} at {place}", uplink.mac());
            Ok(uplink)
        })
    });
}

/// The network card with this address.
#[must_use]
pub fn uplink(mac: Mac) -> Option<&'static Uplink> {
    UPLINKS.get()?.iter().map(|uplink| &**uplink).find(|uplink| uplink.mac() == mac)
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

/// The disk with this serial.
#[must_use]
pub fn find(serial: &str) -> Option<&'static Disk> {
    DISKS.get()?.iter().map(|disk| &**disk).find(|disk| disk.serial() == serial)
}

/// Takes all answers that are there, and gives them to who asked.
pub fn service() {
    for disk in DISKS.get().into_iter().flatten() {
        for (ticket, outcome) in disk.take_answers() {
            if let Some(vm) = ticket.vm.upgrade() {
                guest_disk::complete(&vm, &ticket, outcome);
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

fn tell(serial: &str, what: &dyn core::fmt::Display) {
    log!("disk {serial}: {what}");
}
