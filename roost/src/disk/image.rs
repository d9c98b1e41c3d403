//! Looks at disk images before they are used: what they are, and whether they are all there.
//! Input: files the user named; any bytes.

use super::machine::Format;
use anyhow::{Context, Result, ensure};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// The first bytes of a qcow2 image.
const QCOW2: &[u8] = b"QFI\xfb";
/// Bytes of its header that count here.
const HEADER: usize = 104;
/// The header's bit for data that is in a file of its own.
const EXTERNAL_DATA: u64 = 1 << 2;
/// Where an entry of a table says that something lies.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// A cluster is compressed, and its entry of another form.
const COMPRESSED: u64 = 1 << 62;
/// Entries of a table at most: QEMU has no more.
const MOST: u64 = 4 << 20;

/// What the image at `path` is.
///
/// # Errors
/// It cannot be read, or is cut short.
pub fn look(path: &Path) -> Result<Format> {
    let shown = path.display();
    let mut file = File::open(path).with_context(|| format!("cannot read disk {shown}"))?;
    let len = file.metadata().with_context(|| format!("cannot read disk {shown}"))?.len();
    let mut header = Vec::new();
    file.by_ref()
        .take(HEADER as u64)
        .read_to_end(&mut header)
        .with_context(|| format!("cannot read disk {shown}"))?;
    if !header.starts_with(QCOW2) {
        ensure!(
            len.is_multiple_of(SECTOR),
            "disk {shown} has {len} bytes, which are no whole sectors of 512: it is cut short, or \
             no disk image"
        );
        return Ok(Format::Raw);
    }
    // What is not even a header, QEMU refuses in its own words.
    if let Some(end) = end_of_qcow2(&mut file, &header).unwrap_or_default() {
        ensure!(
            end <= len,
            "disk {shown} is cut short: it has {len} bytes, and its tables name {end}; copy it again"
        );
    }
    Ok(Format::Qcow2)
}

/// The end of what the tables of a qcow2 image name; `None` if they cannot be followed.
fn end_of_qcow2(file: &mut File, header: &[u8]) -> Option<Option<u64>> {
    let word = |at: usize| Some(u64::from_be_bytes(header.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
    let (version, bits) = (half(4)?, half(20)?);
    let (entries, table) = (u64::from(half(36)?), word(40)?);
    let external = version >= 3 && word(72)? & EXTERNAL_DATA != 0;
    if !(9..=21).contains(&bits) || entries > MOST || external {
        return Some(None);
    }
    let cluster = 1 << bits;
    let mut end = table.checked_add(entries * 8)?;
    for first in read_table(file, table, entries)? {
        let at = first & OFFSET;
        if at == 0 {
            continue;
        }
        end = end.max(at.checked_add(cluster)?);
        // A table that is not there has no entries.
        for second in read_table(file, at, cluster / 8).unwrap_or_default() {
            let at = second & OFFSET;
            if at != 0 && second & COMPRESSED == 0 {
                end = end.max(at.checked_add(cluster)?);
            }
        }
    }
    Some(Some(end))
}

fn read_table(file: &mut File, at: u64, entries: u64) -> Option<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(entries).ok()? * 8];
    file.seek(SeekFrom::Start(at)).ok()?;
    file.read_exact(&mut bytes).ok()?;
    Some(bytes.as_chunks().0.iter().map(|&entry| u64::from_be_bytes(entry)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A qcow2 image of two clusters of data, of 64 KiB each.
    fn qcow2() -> Vec<u8> {
        let mut bytes = vec![0; 4 << 16];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"QFI\xfb\0\0\0\x03");
        put(20, &16_u32.to_be_bytes());
        put(24, &(2_u64 << 16).to_be_bytes());
        put(36, &1_u32.to_be_bytes());
        put(40, &(1_u64 << 16).to_be_bytes());
        put(1 << 16, &(1_u64 << 63 | 2 << 16).to_be_bytes());
        put(2 << 16, &(1_u64 << 63 | 3 << 16).to_be_bytes());
        bytes
    }

    fn judged(bytes: &[u8]) -> Result<Format> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, bytes).unwrap();
        look(&path)
    }

    #[test]
    fn whole_images_pass() {
        assert_eq!(judged(&[0; 1024]).unwrap(), Format::Raw);
        assert_eq!(judged(&qcow2()).unwrap(), Format::Qcow2);
        assert_eq!(judged(&qcow2()[..20]).unwrap(), Format::Qcow2, "QEMU says what is wrong");
    }

    #[test]
    fn what_is_cut_short_is_told() {
        let why = judged(&[0; 1000]).unwrap_err().to_string();
        assert!(why.contains("has 1000 bytes, which are no whole sectors"), "{why}");
        for len in [4 << 16, 2 << 16] {
            let why = judged(&qcow2()[..len - 1]).unwrap_err().to_string();
            assert!(why.contains("is cut short") && why.contains("copy it again"), "{why}");
        }
        let mut compressed = qcow2();
        compressed[(2 << 16) + 7 - 7] |= 0x40;
        assert_eq!(judged(&compressed).unwrap(), Format::Qcow2);
    }
}
