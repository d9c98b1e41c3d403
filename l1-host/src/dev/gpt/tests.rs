//! Tables that are sound, and ones that are not.

use super::*;
use gpt_disk_types::{
    GptPartitionEntry, GptPartitionEntrySize, GptPartitionType, Lba, LbaLe, U32Le, guid,
};
use proptest::prelude::*;
use std::cell::RefCell;

const SECTORS: u64 = 2048;

struct Disk(RefCell<Vec<u8>>);

impl Sectors for Disk {
    fn count(&self) -> u64 {
        self.0.borrow().len() as u64 / SECTOR
    }

    fn read(&self, first: u64, out: &mut [u8]) -> bool {
        let start = first as usize * BYTES;
        let bytes = self.0.borrow();
        bytes.get(start..start + out.len()).is_some_and(|bytes| {
            out.copy_from_slice(bytes);
            true
        })
    }
}

/// A disk with partitions from and to these sectors, by their numbers; `change` has the last word on
/// the header before it gets its sum.
fn disk(partitions: &[(u32, u64, u64)], change: impl Fn(&mut GptHeader)) -> Disk {
    let mut bytes = vec![0; (SECTORS * SECTOR) as usize];
    for (own, other, at) in [(1, SECTORS - 1, 2), (SECTORS - 1, 1, SECTORS - 33)] {
        let mut header = GptHeader {
            my_lba: LbaLe::from_u64(own),
            alternate_lba: LbaLe::from_u64(other),
            first_usable_lba: LbaLe::from_u64(34),
            last_usable_lba: LbaLe::from_u64(SECTORS - 34),
            disk_guid: guid!("01020304-0506-0708-090a-0b0c0d0e0f10"),
            partition_entry_lba: LbaLe::from_u64(at),
            number_of_partition_entries: U32Le::from_u32(128),
            size_of_partition_entry: U32Le::from_u32(128),
            ..GptHeader::default()
        };
        let start = at as usize * BYTES;
        let mut layout = header.get_partition_entry_array_layout().unwrap();
        layout.entry_size = GptPartitionEntrySize::new(128).unwrap();
        let storage = &mut bytes[start..start + 32 * BYTES];
        let mut entries = GptPartitionEntryArray::new(layout, BlockSize::BS_512, storage).unwrap();
        for &(number, first, last) in partitions {
            let unique = guid!("11111111-2222-3333-4444-555555555555");
            *entries.get_partition_entry_mut(number - 1).unwrap() = GptPartitionEntry {
                partition_type_guid: GptPartitionType::BASIC_DATA,
                unique_partition_guid: unique,
                starting_lba: Lba(first).into(),
                ending_lba: Lba(last).into(),
                attributes: Default::default(),
                name: "data".parse().unwrap(),
            };
        }
        header.partition_entry_array_crc32 = entries.calculate_crc32();
        change(&mut header);
        header.update_header_crc32();
        let place = own as usize * BYTES;
        bytes[place..place + size_of::<GptHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
    }
    Disk(RefCell::new(bytes))
}

fn sound() -> Disk {
    disk(&[(1, 34, 99), (5, 100, 100)], |_| {})
}

#[test]
fn partitions_are_found() {
    let table = read(&sound()).unwrap();
    assert_eq!(table.disk[..6], [4, 3, 2, 1, 6, 5], "as it lies on the disk");
    let [one, five] = &table.partitions[..] else { panic!("{table:?}") };
    assert_eq!((one.number, one.first, one.sectors), (1, 34, 66));
    assert_eq!((five.number, five.first, five.sectors), (5, 100, 1));
    assert_eq!(one.label, "data");
    assert_eq!(table.only(|p| p.number == 5), Some(five));
    assert_eq!(table.only(|p| p.number == 2), None);
    assert_eq!(table.only(|p| p.label == "data"), None, "there are two");
}

#[test]
fn the_copy_serves_if_the_table_is_damaged() {
    for at in [BYTES + 20, 2 * BYTES + 32] {
        let disk = sound();
        disk.0.borrow_mut()[at] ^= 1;
        assert_eq!(read(&disk), read(&sound()), "byte {at}");
        let end = disk.0.borrow().len();
        disk.0.borrow_mut()[end - 32 * BYTES] ^= 1;
        disk.0.borrow_mut()[end - BYTES + 20] ^= 1;
        assert_eq!(read(&disk), Err(Wrong::Checksum), "both are");
    }
}

#[test]
fn what_is_no_table_is_refused() {
    let empty = |sectors: usize| Disk(RefCell::new(vec![0; sectors * BYTES]));
    for sectors in [0, 1, 2, 2048] {
        assert_eq!(read(&empty(sectors)), Err(Wrong::Absent), "{sectors}");
    }
    let with = |change: fn(&mut GptHeader)| read(&disk(&[(1, 34, 99)], change));
    assert_eq!(with(|h| h.number_of_partition_entries = U32Le::from_u32(513)), Err(Wrong::Table));
    assert_eq!(
        with(|h| h.number_of_partition_entries = U32Le::from_u32(u32::MAX)),
        Err(Wrong::Table)
    );
    assert_eq!(with(|h| h.size_of_partition_entry = U32Le::from_u32(1024)), Err(Wrong::Table));
    assert_eq!(with(|h| h.size_of_partition_entry = U32Le::from_u32(0)), Err(Wrong::Table));
    assert_eq!(with(|h| h.partition_entry_lba = LbaLe::from_u64(SECTORS - 31)), Err(Wrong::Table));
    assert_eq!(with(|h| h.partition_entry_lba = LbaLe::from_u64(u64::MAX)), Err(Wrong::Table));
    assert_eq!(with(|h| h.my_lba = LbaLe::from_u64(7)), Err(Wrong::Table));
}

#[test]
fn partitions_stay_within_the_disk_and_apart() {
    let of = |partitions: &[(u32, u64, u64)]| read(&disk(partitions, |_| {})).map(drop);
    assert_eq!(of(&[(1, 1, SECTORS - 1)]), Ok(()), "all there is");
    for (first, last) in [(0, 9), (34, SECTORS), (40, 39), (34, u64::MAX), (u64::MAX, u64::MAX)] {
        assert_eq!(of(&[(1, 50, 60), (3, first, last)]), Err(Wrong::Outside(3)), "{first} {last}");
    }
    for (first, last) in [(50, 60), (34, 50), (60, 99), (34, 99), (55, 56)] {
        assert_eq!(of(&[(1, 50, 60), (2, first, last)]), Err(Wrong::Overlap(2)), "{first} {last}");
    }
    assert_eq!(of(&[(1, 50, 60), (2, 61, 61), (3, 34, 49)]), Ok(()), "side by side");
}

proptest! {
    /// Whatever is on the disk, what is found lies within it, each apart from the others.
    #[test]
    fn anything_may_be_there(
        changes in prop::collection::vec((0..34 * BYTES, any::<u8>()), 0..8),
        header in prop::collection::vec((512..604_usize, any::<u8>()), 0..4),
    ) {
        let disk = sound();
        for (at, byte) in changes.into_iter().chain(header) {
            disk.0.borrow_mut()[at] = byte;
        }
        if let Ok(table) = read(&disk) {
            for (index, one) in table.partitions.iter().enumerate() {
                let end = one.first.checked_add(one.sectors);
                prop_assert!(end.is_some_and(|end| end <= SECTORS));
                for other in &table.partitions[..index] {
                    let before = one.first + one.sectors <= other.first;
                    prop_assert!(before || other.first + other.sectors <= one.first);
                }
            }
        }
    }
}
