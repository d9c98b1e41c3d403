//! Makes disks with partitions.

use gpt_disk_types::{
    BlockSize, GptHeader, GptPartitionEntry, GptPartitionEntryArray, GptPartitionType, Guid, Lba,
    LbaLe, U32Le,
};

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Sectors of the table's entries.
const ENTRIES: usize = 32;

/// A partition: its label, its first sector and its last.
pub type Partition<'a> = (&'a str, u64, u64);

/// Gives the disk with these bytes a table of partitions, the first with number 1. Partition n has a GUID
/// of bytes n.
///
/// # Panics
/// The disk is too small.
pub fn partition(disk: &mut [u8], guid: [u8; 16], partitions: &[Partition<'_>]) {
    let end = (disk.len() / SECTOR - 1) as u64;
    // The old table says that there is a new one: firmware asks for that.
    disk[446..510].fill(0);
    disk[450] = 0xee;
    disk[454..458].copy_from_slice(&1_u32.to_le_bytes());
    disk[458..462].copy_from_slice(&(end as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (own, other, entries_at) in [(1, end, 2), (end, 1, end - ENTRIES as u64)] {
        let mut header = GptHeader {
            my_lba: LbaLe::from_u64(own),
            alternate_lba: LbaLe::from_u64(other),
            first_usable_lba: LbaLe::from_u64(34),
            last_usable_lba: LbaLe::from_u64(end - 33),
            disk_guid: Guid::from_bytes(guid),
            partition_entry_lba: LbaLe::from_u64(entries_at),
            number_of_partition_entries: U32Le::from_u32(128),
            size_of_partition_entry: U32Le::from_u32(128),
            ..GptHeader::default()
        };
        let layout = header.get_partition_entry_array_layout().expect("128 bytes each");
        let at = entries_at as usize * SECTOR;
        let storage = &mut disk[at..at + ENTRIES * SECTOR];
        storage.fill(0);
        let mut entries =
            GptPartitionEntryArray::new(layout, BlockSize::BS_512, storage).expect("room");
        for (index, &(label, first, last)) in (0..).zip(partitions) {
            *entries.get_partition_entry_mut(index).expect("128 entries") = GptPartitionEntry {
                partition_type_guid: GptPartitionType::BASIC_DATA,
                unique_partition_guid: Guid::from_bytes([index as u8 + 1; 16]),
                starting_lba: Lba(first).into(),
                ending_lba: Lba(last).into(),
                attributes: Default::default(),
                name: label.parse().expect("a short label"),
            };
        }
        header.partition_entry_array_crc32 = entries.calculate_crc32();
        header.update_header_crc32();
        let at = own as usize * SECTOR;
        disk[at..at + size_of::<GptHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
    }
}
