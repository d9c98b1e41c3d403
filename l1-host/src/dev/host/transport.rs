//! Finds virtio devices of the machine, on PCI or with registers in memory alone.
//! May: alloc. Context: boot; doorbells: run-loop. Input: the machine's devices.

use super::{mmio, pci};
use crate::{hw::mmio::Register, log};
use alloc::{string::String, vec::Vec};
use core::fmt;
use virtio_drivers::transport::{DeviceType, SomeTransport, pci::bus::DeviceFunction};

/// Where a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On PCI.
    Pci(DeviceFunction),
    /// Its registers start at this physical address.
    Memory(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(place) => write!(f, "{place}"),
            Self::Memory(address) => write!(f, "{address:#x}"),
        }
    }
}

impl Place {
    /// Keeps a device on PCI from memory for ever. Elsewhere there is no such switch.
    pub fn keep_off_the_bus(self) {
        if let Self::Pci(place) = self {
            pci::keep_off_the_bus(place);
        }
    }
}

/// How a device is to interrupt.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The CPU.
    pub apic_id: u32,
    /// What its interrupts are for.
    pub vector: u8,
}

/// How a device's queues and L1 tell each other of what is new.
#[derive(Clone, Copy, Debug)]
pub enum Signals {
    /// By messages.
    Pci(pci::Signals),
    /// By a line.
    Memory(mmio::Signals),
}

impl Signals {
    /// Has the device's queue `queue` interrupt. All queues of one with a line do.
    ///
    /// # Errors
    /// It cannot.
    pub fn route(&self, queue: u16) -> Result<(), String> {
        match self {
            Self::Pci(signals) => signals.route(queue),
            Self::Memory(signals) => signals.route(),
        }
    }

    /// The doorbell of queue `queue`.
    ///
    /// # Errors
    /// It has no place.
    pub fn doorbell(&self, queue: u16) -> Result<Doorbell, String> {
        match self {
            Self::Pci(signals) => signals.doorbell(queue),
            Self::Memory(signals) => signals.doorbell(queue),
        }
    }
}

/// Where a device is told that a queue has something for it, and the number of the queue. The crate's transport
/// looks for it each time, on PCI by a write and a read that each leave the machine.
#[derive(Debug)]
pub enum Doorbell {
    /// On PCI.
    Pci(Register<u16>, u16),
    /// In memory.
    Memory(Register<u32>, u32),
}

impl Doorbell {
    /// Tells the device.
    #[inline]
    pub fn ring(&self) {
        match *self {
            Self::Pci(register, queue) => register.write(queue),
            Self::Memory(register, queue) => register.write(queue),
        }
    }
}

/// What `make` makes of each device of `kind`, in the order of their places. They interrupt as `way` says. Of one
/// that cannot be used the log says why, by `name`.
pub fn each<T>(
    name: &str,
    kind: DeviceType,
    way: Way,
    mut make: impl FnMut(Place, SomeTransport<'static>, Signals) -> Result<T, String>,
) -> Vec<T> {
    let mut made = Vec::new();
    let mut found = |place, opened: Result<(SomeTransport<'static>, Signals), String>| match opened
        .and_then(|(transport, signals)| make(place, transport, signals))
    {
        Ok(device) => made.push(device),
        Err(why) => log!("{name} at {place}: not used: {why}"),
    };
    pci::each(kind, way, |place, opened| {
        let opened = opened.map(|(transport, signals)| (transport.into(), Signals::Pci(signals)));
        found(Place::Pci(place), opened);
    });
    mmio::each(kind, way, |address, opened| {
        let opened =
            opened.map(|(transport, signals)| (transport.into(), Signals::Memory(signals)));
        found(Place::Memory(address), opened);
    });
    made
}
