//! Finds the disk of the machine, or the part of one, that a guest is to have.
//! May: nothing. Context: boot; the loop of a CPU. Input: what is on the machine's disks.

use super::{Disk, Known};
use crate::dev::{
    gpt::{Table, Wrong},
    virtio::block::Access,
};
use core::{fmt, ops::Range};
use pv_abi::bundle::{self, MachineDisk, Partition};

/// What a guest gets of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The disk.
    pub disk: &'static Disk,
    /// The first sector.
    pub first: u64,
    /// How many.
    pub sectors: u64,
    /// Whether it may be written.
    pub access: Access,
}

/// Why a guest cannot have a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is none.
    Disk,
    /// There are several.
    Several,
    /// The disk has no partitions.
    Table(Wrong),
    /// The disk has other partitions, or several of that label.
    Partition,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk => {
                f.write_str("the machine lacks it, or L1 cannot use it: L1's log says more")
            }
            Self::Several => {
                f.write_str("several of the machine's disks may be meant: detach the copy")
            }
            Self::Table(wrong) => write!(f, "of the disk it is to be on, {wrong}"),
            Self::Partition => {
                f.write_str("the disk has no such partition, or several of that label")
            }
        }
    }
}

/// What `wanted` means on a machine with these disks.
///
/// # Errors
/// [`Missing`].
pub fn find(disks: &'static [Known], wanted: &bundle::Disk) -> Result<Extent, Missing> {
    let is_named = |known: &Known| match &wanted.on {
        MachineDisk::Any => partition(known, wanted.partition.as_ref()).is_ok(),
        MachineDisk::Serial(serial) => known.disk.serial() == serial,
        MachineDisk::Pci(place) => known.disk.is_at(*place),
        MachineDisk::Table(guid) => known.table.as_ref().is_ok_and(|table| table.disk == *guid),
    };
    let mut named = disks.iter().filter(|known| is_named(known));
    let known = named.next().ok_or(Missing::Disk)?;
    if named.next().is_some() {
        return Err(Missing::Several);
    }
    let sectors = partition(known, wanted.partition.as_ref())?;
    let read_only = wanted.read_only || known.disk.access() == Access::Read;
    Ok(Extent {
        disk: &known.disk,
        first: sectors.start,
        sectors: sectors.end - sectors.start,
        access: if read_only { Access::Read } else { Access::Write },
    })
}

/// The sectors of a partition of the disk, or of all of it.
fn partition(known: &Known, wanted: Option<&Partition>) -> Result<Range<u64>, Missing> {
    let Some(wanted) = wanted else { return Ok(0..known.disk.sectors()) };
    let table: &Table = known.table.as_ref().map_err(|&wrong| Missing::Table(wrong))?;
    let found = table.only(|partition| match wanted {
        Partition::Number(number) => partition.number == *number,
        Partition::Label(label) => partition.label == *label,
        Partition::Guid(guid) => partition.guid == *guid,
    });
    let found = found.ok_or(Missing::Partition)?;
    Ok(found.first..found.first + found.sectors)
}

impl Extent {
    /// Both have a sector that one of them may write.
    #[must_use]
    pub fn disturbs(&self, other: &Self) -> bool {
        let written = self.access == Access::Write || other.access == Access::Write;
        let apart =
            self.first + self.sectors <= other.first || other.first + other.sectors <= self.first;
        written && !apart && core::ptr::eq(self.disk, other.disk)
    }
}
