//! Reads the partition table of a disk (UEFI 2.10, 5.3): never writes it, and believes nothing in it.
//! May: alloc. Context: boot. Input: what is on the machine's disks.

use alloc::{string::String, vec, vec::Vec};
use core::fmt;
use gpt_disk_types::{BlockSize, GptHeader, GptPartitionEntryArray};
use pv_abi::virtio::block::SECTOR;

/// Bytes of a sector.
const BYTES: usize = SECTOR as usize;
/// Partitions at most; firmware makes room for 128.
const MOST: u32 = 512;
/// Bytes of an entry at most.
const LARGEST_ENTRY: usize = 512;

/// A disk that can be read.
pub trait Sectors {
    /// Its sectors of 512 bytes.
    fn count(&self) -> u64;
    /// Reads the sectors from `first` on into `out`, whole sectors; false if that fails.
    fn read(&self, first: u64, out: &mut [u8]) -> bool;
}

/// A partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The disk's own identifier, as bytes lie on the disk.
    pub disk: [u8; 16],
    /// The partitions, all within the disk and apart from each other.
    pub partitions: Vec<Partition>,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1 on.
    pub number: u32,
    /// Its own identifier, as bytes lie on the disk.
    pub guid: [u8; 16],
    /// Its label.
    pub label: String,
    /// Its first sector.
    pub first: u64,
    /// Its sectors.
    pub sectors: u64,
}

/// Why a disk has no partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It cannot be read.
    Unreadable,
    /// There is no table.
    Absent,
    /// A checksum is another.
    Checksum,
    /// The table is too large, or not where it may be.
    Table,
    /// The partition with this number is not within the disk.
    Outside(u32),
    /// The partition with this number shares sectors with another.
    Overlap(u32),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("it cannot be read"),
            Self::Absent => f.write_str("it has no GUID partition table"),
            Self::Checksum => f.write_str("its partition table is damaged: a checksum differs"),
            Self::Table => f.write_str("its partition table is too large, or out of place"),
            Self::Outside(number) => write!(f, "its partition {number} is not within the disk"),
            Self::Overlap(number) => write!(f, "its partition {number} overlaps another"),
        }
    }
}

/// The table of `disk`: the first one, or the copy at the disk's end if that one is damaged.
///
/// # Errors
/// What is wrong with the first.
pub fn read(disk: &impl Sectors) -> Result<Table, Wrong> {
    let first = read_at(disk, 1);
    match first {
        Err(Wrong::Absent | Wrong::Checksum | Wrong::Table) => {
            let last = disk.count().saturating_sub(1);
            read_at(disk, last).or(first)
        }
        _ => first,
    }
}

fn read_at(disk: &impl Sectors, sector: u64) -> Result<Table, Wrong> {
    if sector == 0 || sector >= disk.count() {
        return Err(Wrong::Absent);
    }
    let mut block = [0; BYTES];
    if !disk.read(sector, &mut block) {
        return Err(Wrong::Unreadable);
    }
    let header: GptHeader = bytemuck::pod_read_unaligned(&block[..size_of::<GptHeader>()]);
    if !header.is_signature_valid() {
        return Err(Wrong::Absent);
    }
    if header.calculate_header_crc32() != header.header_crc32 {
        return Err(Wrong::Checksum);
    }
    let layout = header.get_partition_entry_array_layout().map_err(|_| Wrong::Table)?;
    let blocks = layout.num_blocks(BlockSize::BS_512).ok_or(Wrong::Table)?;
    let start = layout.start_lba.to_u64();
    let small = layout.num_entries <= MOST
        && layout.entry_size.to_usize().is_some_and(|size| size <= LARGEST_ENTRY);
    let end = start.checked_add(blocks).filter(|&end| end <= disk.count());
    if !small || end.is_none() || header.my_lba.to_u64() != sector {
        return Err(Wrong::Table);
    }
    let mut storage = vec![0; blocks as usize * BYTES];
    if !disk.read(start, &mut storage) {
        return Err(Wrong::Unreadable);
    }
    let entries = GptPartitionEntryArray::new(layout, BlockSize::BS_512, &mut storage)
        .map_err(|_| Wrong::Table)?;
    if entries.calculate_crc32() != header.partition_entry_array_crc32 {
        return Err(Wrong::Checksum);
    }
    let mut partitions = Vec::<Partition>::new();
    for index in 0..layout.num_entries {
        let entry = entries.get_partition_entry(index).ok_or(Wrong::Table)?;
        if !entry.is_used() {
            continue;
        }
        let number = index + 1;
        let (first, last) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
        if first == 0 || first > last || last >= disk.count() {
            return Err(Wrong::Outside(number));
        }
        let apart = |other: &Partition| last < other.first || other.first + other.sectors <= first;
        if !partitions.iter().all(apart) {
            return Err(Wrong::Overlap(number));
        }
        // Fields of a packed structure are copied before they are used.
        let (guid, name) = (entry.unique_partition_guid, entry.name);
        let (guid, label) = (guid.to_bytes(), name.chars().collect());
        partitions.push(Partition { number, guid, label, first, sectors: last - first + 1 });
    }
    let disk = header.disk_guid;
    Ok(Table { disk: disk.to_bytes(), partitions })
}

impl Table {
    /// The one partition that `is` says is meant; `None` if there is none, or are several.
    pub fn only(&self, is: impl Fn(&Partition) -> bool) -> Option<&Partition> {
        let mut found = self.partitions.iter().filter(|partition| is(partition));
        found.next().filter(|_| found.next().is_none())
    }
}

#[cfg(test)]
mod tests;
