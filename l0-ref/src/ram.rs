//! Holds L1's memory: one file in memory, mapped below and above the hole for devices.

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::{fs::File, ops::Range, sync::Arc};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Where memory below 4 GiB ends and the hole for devices starts.
pub const LOW_END: u64 = 3 << 30;
/// Where memory goes on.
const HIGH_START: u64 = 4 << 30;
/// The least memory that holds an image and its tables, MiB.
const LEAST_MIB: u64 = 16;
/// The most, MiB: 1 TiB, so that sums of addresses stay far from 64 bits.
const MOST_MIB: u64 = 1 << 20;

/// A piece of L1's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// L1-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where it is in the file.
    pub offset: u64,
}

/// The pieces of `bytes` of memory, in order.
#[must_use]
pub fn pieces(bytes: u64) -> Vec<Piece> {
    let low = bytes.min(LOW_END);
    let mut pieces = vec![Piece { start: 0, len: low, offset: 0 }];
    if bytes > low {
        pieces.push(Piece { start: HIGH_START, len: bytes - low, offset: low });
    }
    pieces
}

/// L1's memory.
#[derive(Clone, Debug)]
pub struct Ram {
    memory: GuestMemoryMmap,
    file: Arc<File>,
    pieces: Vec<Piece>,
}

impl Ram {
    /// Zeroed memory.
    ///
    /// # Errors
    /// An impossible size, or too little memory on this machine.
    pub fn new(mib: u64) -> Result<Self> {
        ensure!(
            (LEAST_MIB..=MOST_MIB).contains(&mib),
            "--memory {mib} is impossible: take {LEAST_MIB} to {MOST_MIB} MiB"
        );
        let no_memory =
            || format!("cannot get {mib} MiB of memory for L1: take a smaller --memory");
        let file = memfd_create("l1", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .with_context(no_memory)?;
        ftruncate(&file, mib * MIB).with_context(no_memory)?;
        // A file that shrank would turn accesses into signals.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .with_context(no_memory)?;
        let file = Arc::new(File::from(file));
        let pieces = pieces(mib * MIB);
        let ranges = pieces.iter().map(|piece| {
            let offset = FileOffset::from_arc(Arc::clone(&file), piece.offset);
            (GuestAddress(piece.start), piece.len as usize, Some(offset))
        });
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).with_context(no_memory)?;
        Ok(Self { memory, file, pieces })
    }

    /// The memory, by L1-physical address.
    #[must_use]
    pub const fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The file that holds all of it.
    #[must_use]
    pub const fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Its pieces, in order.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Where the bytes `l1` are in the file, if they are all memory and in one piece.
    #[must_use]
    pub fn file_offset(&self, l1: Range<u64>) -> Option<u64> {
        let inside = |piece: &&Piece| {
            l1.start >= piece.start && l1.start <= l1.end && l1.end <= piece.start + piece.len
        };
        let piece = self.pieces.iter().find(inside)?;
        Some(l1.start - piece.start + piece.offset)
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_a_hole_for_devices() {
        assert_eq!(pieces(64 * MIB), [Piece { start: 0, len: 64 * MIB, offset: 0 }]);
        let high = Piece { start: HIGH_START, len: MIB, offset: LOW_END };
        assert_eq!(pieces(LOW_END + MIB)[1..], [high]);
    }

    #[test]
    fn only_memory_has_a_place_in_the_file() {
        let ram = Ram::new(3 * 1024 + 1).unwrap();
        assert_eq!(ram.file_offset(0x1000..0x2000), Some(0x1000));
        assert_eq!(ram.file_offset(LOW_END - 1..LOW_END), Some(LOW_END - 1));
        assert_eq!(ram.file_offset(LOW_END - 1..LOW_END + 1), None);
        assert_eq!(ram.file_offset(HIGH_START..HIGH_START + MIB), Some(LOW_END));
        assert_eq!(ram.file_offset(HIGH_START..HIGH_START + MIB + 1), None);
        assert_eq!(ram.file_offset(Range { start: 0x2000, end: 0x1000 }), None);
        assert_eq!(ram.bytes(), LOW_END + MIB);
    }

    #[test]
    fn an_impossible_size_is_refused() {
        for mib in [0, 15, u64::MAX] {
            assert!(Ram::new(mib).unwrap_err().to_string().contains("is impossible: take 16"));
        }
    }
}
