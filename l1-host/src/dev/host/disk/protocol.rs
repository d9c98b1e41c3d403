//! How a device is asked, and answers: a disk of virtio's own kind, or a unit of a SCSI controller.
//! May: nothing. Context: run-loop, irq-off. Input: the machine's device.

use super::{block, work::Work};
use crate::dev::{
    scsi::{self, Order},
    virtio::block::Kind,
};
use core::fmt;
use pv_abi::virtio::block::SECTOR;

// Those of SCSI are the longer ones.
pub use crate::dev::scsi::{ANSWER, HEAD, Head, Verdict};

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// The device, which is a disk.
    Device,
    /// One that a SCSI controller has.
    Scsi(scsi::Address),
}

/// What the device speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// That of virtio disks (virtio 1.2, 5.2).
    Block,
    /// That of virtio SCSI controllers (5.6).
    Scsi,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => Ok(()),
            Self::Scsi(address) => write!(f, ", unit {address}"),
        }
    }
}

impl Unit {
    /// How it is asked for `work`.
    pub fn head(self, work: &Work) -> Head {
        match self {
            Self::Device => block::head(work),
            Self::Scsi(address) => {
                let bytes: u64 = work.runs.iter().map(|run| u64::from(run.len)).sum();
                let sectors = match work.kind {
                    Kind::Read | Kind::Write => (bytes / SECTOR) as u32,
                    _ => work.sectors,
                };
                address.order(Order { kind: work.kind, sector: work.sector, sectors })
            }
        }
    }
}

impl Protocol {
    /// The queue for requests.
    pub const fn queue(self) -> u16 {
        match self {
            Self::Block => 0,
            Self::Scsi => scsi::REQUESTS,
        }
    }

    /// Bytes of a head that are in one piece of memory: those of SCSI are followed by data, which QEMU looks for in a
    /// piece of its own.
    pub const fn header(self) -> usize {
        match self {
            Self::Block => HEAD,
            Self::Scsi => scsi::HEADER,
        }
    }

    /// Bytes of an answer.
    pub const fn answer(self) -> usize {
        match self {
            Self::Block => 1,
            Self::Scsi => ANSWER,
        }
    }

    /// Gives a request its number, which no other has that is under way.
    pub fn set_number(self, head: &mut Head, number: u64) {
        if self == Self::Scsi {
            scsi::set_tag(head, number);
        }
    }

    /// A request of this kind goes with a sector of zeros.
    pub fn takes_zeros(self, kind: Kind) -> bool {
        self == Self::Scsi && matches!(kind, Kind::Zero | Kind::ZeroAndUnmap)
    }

    /// What `answer`, of the bytes above, says; `all`, if less than all that was asked for is nothing.
    pub fn verdict(self, answer: &[u8], all: bool) -> Verdict {
        match self {
            Self::Block => block::verdict(answer),
            Self::Scsi => scsi::verdict(answer, all),
        }
    }
}
