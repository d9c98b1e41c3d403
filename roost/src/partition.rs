//! Adds partitions to a disk image that has a partition table.
//! Input: the medium that GRUB's program has just written, and files the user named.

use crate::disk::Embedded;
use anyhow::{Context, Result, bail, ensure};
use gpt_disk_types::{
    BlockSize, GptHeader, GptPartitionEntry, GptPartitionEntryArray, GptPartitionType, Guid, Lba,
    LbaLe,
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

const SECTOR: u64 = 512;
/// Partitions start at multiples of this many sectors: 1 MiB.
const ALIGN: u64 = 2048;
/// The first of the old partition table's entries: its type, and its length in sectors.
const OLD_TYPE: u64 = 446 + 4;
const OLD_LENGTH: u64 = 446 + 12;
/// The type that says that the disk has a new table.
const PROTECTIVE: u8 = 0xee;

/// Appends what is in `content`, raw, to the image in `medium`, as the partition that `disk` says.
///
/// # Errors
/// The image has no partition table, or no room in it; a file cannot be read or written.
pub fn append(medium: &Path, content: &Path, disk: &Embedded) -> Result<()> {
    let failed = || format!("cannot add disk {} to the image", disk.path.display());
    let mut file = OpenOptions::new().read(true).write(true).open(medium).with_context(failed)?;
    let (header, storage) = read_table(&mut file).with_context(failed)?;

    let end = file.seek(SeekFrom::End(0)).with_context(failed)?;
    let first = end.div_ceil(SECTOR).next_multiple_of(ALIGN);
    file.seek(SeekFrom::Start(first * SECTOR)).with_context(failed)?;
    let bytes = copy_sparse(&mut File::open(content).with_context(failed)?, &mut file)
        .with_context(failed)?;
    let last = first + bytes.div_ceil(SECTOR) - 1;
    let table = Table { header, storage, last };
    table
        .write(&mut file, |entry| {
            *entry = GptPartitionEntry {
                partition_type_guid: GptPartitionType(LINUX_DATA),
                unique_partition_guid: Guid::from_bytes(disk.guid),
                starting_lba: Lba(first).into(),
                ending_lba: Lba(last).into(),
                attributes: Default::default(),
                name: disk.label.parse().unwrap_or_default(),
            };
        })
        .with_context(failed)
}

/// "Linux filesystem data".
const LINUX_DATA: Guid = gpt_disk_types::guid!("0fc63daf-8483-4772-8e79-3d69d8477de4");

fn read_table(file: &mut File) -> Result<(GptHeader, Vec<u8>)> {
    let mut block = [0; SECTOR as usize];
    file.seek(SeekFrom::Start(SECTOR))?;
    file.read_exact(&mut block)?;
    let header: GptHeader = bytemuck::pod_read_unaligned(&block[..size_of::<GptHeader>()]);
    let sound =
        header.is_signature_valid() && header.calculate_header_crc32() == header.header_crc32;
    ensure!(sound, "it has no partition table");
    let layout = header.get_partition_entry_array_layout().ok().context("its table is damaged")?;
    let blocks = layout.num_blocks_as_usize(BlockSize::BS_512).context("its table is too large")?;
    let mut storage = vec![0; blocks * SECTOR as usize];
    file.seek(SeekFrom::Start(layout.start_lba.to_u64() * SECTOR))?;
    file.read_exact(&mut storage)?;
    Ok((header, storage))
}

/// Copies all of `from`; where it has only zeros, `to` gets a hole. Returns how many bytes it has.
fn copy_sparse(from: &mut File, to: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(bytes);
        }
        if buffer[..count].iter().all(|&byte| byte == 0) {
            to.seek_relative(count as i64)?;
        } else {
            to.write_all(&buffer[..count])?;
        }
        bytes += count as u64;
    }
}

/// A table to be written, for an image whose partitions end with sector `last`.
struct Table {
    header: GptHeader,
    storage: Vec<u8>,
    last: u64,
}

impl Table {
    /// Has `fill` fill the first entry that is not used, and writes the table and its copy.
    fn write(mut self, file: &mut File, fill: impl FnOnce(&mut GptPartitionEntry)) -> Result<()> {
        let layout = self.header.get_partition_entry_array_layout().ok().context("damaged")?;
        let mut entries = GptPartitionEntryArray::new(layout, BlockSize::BS_512, &mut self.storage)
            .ok()
            .context("its table is damaged")?;
        let free = (0..layout.num_entries).find(|&index| {
            entries.get_partition_entry(index).is_some_and(|entry| !entry.is_used())
        });
        match free.and_then(|index| entries.get_partition_entry_mut(index)) {
            Some(entry) => fill(entry),
            None => bail!("its partition table is full"),
        }
        let sum = entries.calculate_crc32();
        let blocks = self.storage.len() as u64 / SECTOR;
        let copy = self.last + 1;
        let end = copy + blocks;
        let own = self.header.my_lba;
        let first = GptHeader {
            alternate_lba: LbaLe::from_u64(end),
            last_usable_lba: LbaLe::from_u64(self.last),
            partition_entry_array_crc32: sum,
            ..self.header
        };
        let second = GptHeader {
            my_lba: LbaLe::from_u64(end),
            alternate_lba: own,
            partition_entry_lba: LbaLe::from_u64(copy),
            ..first
        };
        for mut header in [first, second] {
            header.update_header_crc32();
            let (place, own) = (header.partition_entry_lba.to_u64(), header.my_lba.to_u64());
            put(file, place * SECTOR, &self.storage)?;
            let mut block = [0; SECTOR as usize];
            block[..size_of::<GptHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
            put(file, own * SECTOR, &block)?;
        }
        protect(file, end)?;
        Ok(())
    }
}

/// Has the old table cover the disk, whose last sector is `end`.
fn protect(file: &mut File, end: u64) -> io::Result<()> {
    let mut kind = [0];
    file.seek(SeekFrom::Start(OLD_TYPE))?;
    file.read_exact(&mut kind)?;
    if kind[0] == PROTECTIVE {
        put(file, OLD_LENGTH, &u32::try_from(end).unwrap_or(u32::MAX).to_le_bytes())?;
    }
    Ok(())
}

fn put(file: &mut File, at: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::machine::Format;
    use gpt_disk_types::U32Le;
    use std::fs;

    /// An image of 1000 sectors with a table of `entries` entries, none used.
    fn medium(entries: u32) -> Vec<u8> {
        let mut bytes = vec![0; 1000 * SECTOR as usize];
        bytes[OLD_TYPE as usize] = PROTECTIVE;
        let mut header = GptHeader {
            my_lba: LbaLe::from_u64(1),
            partition_entry_lba: LbaLe::from_u64(20),
            number_of_partition_entries: U32Le::from_u32(entries),
            size_of_partition_entry: U32Le::from_u32(128),
            ..GptHeader::default()
        };
        header.update_header_crc32();
        bytes[512..512 + size_of::<GptHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
        bytes
    }

    fn disk() -> Embedded {
        let path = "data.img".into();
        Embedded { path, format: Format::Raw, guid: [7; 16], label: "data".into() }
    }

    #[test]
    fn contents_become_partitions() {
        let dir = tempfile::tempdir().unwrap();
        let [image, content] = ["image", "content"].map(|name| dir.path().join(name));
        fs::write(&image, medium(4)).unwrap();
        for (round, byte) in [1, 2].into_iter().enumerate() {
            // Zeros, which are left out, are at its start and its end.
            let mut data = vec![0; 3 << 16];
            data[1 << 16] = byte;
            fs::write(&content, &data).unwrap();
            append(&image, &content, &disk()).unwrap();
            let first = [2048, 4096][round];
            let whole = fs::read(&image).unwrap();
            assert_eq!(whole[first * 512..first * 512 + data.len()], data[..]);
            let end = whole.len() / 512 - 1;
            for at in [1, end] {
                let header: GptHeader =
                    bytemuck::pod_read_unaligned(&whole[at * 512..at * 512 + 92]);
                assert!(header.is_signature_valid());
                assert_eq!(header.calculate_header_crc32(), { header.header_crc32 });
                assert_eq!(header.my_lba.to_u64(), at as u64);
                let place = header.partition_entry_lba.to_u64() as usize * 512;
                let entry: GptPartitionEntry = bytemuck::pod_read_unaligned(
                    &whole[place + round * 128..place + (round + 1) * 128],
                );
                let (from, to) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
                assert_eq!((from, to), (first as u64, first as u64 + 383));
                assert_eq!({ entry.name }.to_string(), "data");
            }
            let covered = u32::from_le_bytes(whole[458..462].try_into().unwrap());
            assert_eq!(covered as usize, end);
        }
    }

    #[test]
    fn a_table_without_room_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let [image, content] = ["image", "content"].map(|name| dir.path().join(name));
        fs::write(&content, [1; 512]).unwrap();
        fs::write(&image, medium(1)).unwrap();
        append(&image, &content, &disk()).unwrap();
        let why = format!("{:#}", append(&image, &content, &disk()).unwrap_err());
        assert!(why.contains("data.img") && why.contains("is full"), "{why}");
        fs::write(&image, [0; 2048]).unwrap();
        let why = format!("{:#}", append(&image, &content, &disk()).unwrap_err());
        assert!(why.contains("no partition table"), "{why}");
    }
}
