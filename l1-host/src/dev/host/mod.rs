//! Drives disks of the machine, for guests.
//! May: alloc. Context: boot; run-loop, irq-off. Input: the machine's devices.
//!
//! `pci` finds them and has them interrupt, `hal` is what the crate `virtio-drivers` wants of L1,
//! `disk` sends requests and takes the answers. A device that misbehaves costs its own disk: requests
//! fail, and the log says why.

mod disk;
mod hal;
mod pci;

pub use disk::{Disk, Outcome, PIECES, Refused, Run, Ticket, Work};

use crate::{dev::virtio::disk as guest_disk, hw::percpu::Cpu, log};
use alloc::{boxed::Box, vec::Vec};
use spin::Once;

static DISKS: Once<Vec<Box<Disk>>> = Once::new();

/// Finds the machine's disks; they interrupt `cpu`.
pub fn start(cpu: &Cpu) {
    DISKS.call_once(|| pci::disks(cpu.apic_id));
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

fn tell(serial: &str, what: &dyn core::fmt::Display) {
    log!("disk {serial}: {what}");
}
