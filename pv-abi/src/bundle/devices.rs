//! The devices of guests, and what of the machine they stand for.
//! May: nothing. Input: trusted (the host tool), checked all the same.

extern crate alloc;

use alloc::string::String;
use serde::{Deserialize, Serialize};

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The slot of its device, below [`crate::ext::devices::SLOTS`].
    pub slot: u8,
    /// Which of the machine's it is, or lies on.
    pub on: MachineDisk,
    /// The part of that which it is, if not all.
    pub partition: Option<Partition>,
    /// By which its guest knows it, 20 bytes at most.
    pub name: String,
    /// Its guest may not write to it.
    pub read_only: bool,
}

/// A disk of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineDisk {
    /// The one that has the partition.
    Any,
    /// By its name there, 20 bytes at most.
    Serial(String),
    /// By its place.
    Pci(PciPlace),
    /// By the identifier in its partition table, as bytes lie on the disk.
    Table([u8; 16]),
}

/// A place on PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciPlace {
    /// The bus, as firmware numbers it.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

/// A partition of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Partition {
    /// By its number, from 1 on.
    Number(u32),
    /// By its label.
    Label(String),
    /// By its own identifier, as bytes lie on the disk.
    Guid([u8; 16]),
}

/// A network card of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// The slot of its device, below [`crate::ext::devices::SLOTS`].
    pub slot: u8,
    /// The network it is on, one of [`Bundle::networks`].
    pub network: String,
    /// Its address, that of no other card; if none, that of the machine's card by which its network goes out.
    pub mac: Option<[u8; 6]>,
    /// The only IPv4 address that its guest may send by, if one is settled.
    pub ip: Option<[u8; 4]>,
    /// Bytes that it may send in a second, and be sent; 0 for any.
    pub rate: u64,
    /// Bytes of the longest packet in a frame, within [`MTUS`].
    pub mtu: u16,
}

/// Another virtio device of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its slot, below [`crate::ext::devices::SLOTS`].
    pub slot: u8,
    /// What it does.
    pub kind: DeviceKind,
}

/// What a virtio device does that is no disk and no network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// It gives random bytes.
    Entropy,
    /// It is a port to the guest's console.
    Console,
    /// It carries socket connections between guests.
    Vsock {
        /// The guest's address, within [`CIDS`]; no other guest has it.
        cid: u32,
    },
}

/// Addresses that a guest may have among sockets: virtio keeps those below for the host and others, and the
/// last for "any".
pub const CIDS: core::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// A network that joins guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// By which cards name it.
    pub name: String,
    /// The machine's card by which it goes out, if it does.
    pub uplink: Option<Uplink>,
}

/// A network card of the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Uplink {
    /// The one with this address.
    Address([u8; 6]),
    /// The first that is no other network's.
    First,
}

/// Packets that cards take at most.
pub const MTUS: core::ops::RangeInclusive<u16> = 576..=9000;
/// What they take if nothing is said, and on a network with an uplink at most.
pub const DEFAULT_MTU: u16 = 1500;
