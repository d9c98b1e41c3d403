//! Loads L1.
//! May: panic. Context: boot. Input: L1's file, trusted.

use super::{entry, memory::bytes};

const LOAD: u64 = 1;

/// Copies the segments of the ELF file to where they belong; returns where it is entered. L1's file
/// names the entry of PVH as its own.
pub fn load(file: &[u8]) -> u32 {
    assert!(file.starts_with(b"\x7fELF\x02\x01"), "L1's file is none for 64 bits");
    let half = |at: usize| u16::from_le_bytes([file[at], file[at + 1]]);
    let quad = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"));
    let headers = quad(0x20) as usize;
    for index in 0..usize::from(half(0x38)) {
        let header = headers + index * usize::from(half(0x36));
        let [offset, physical, in_file, in_memory] =
            [0x8, 0x18, 0x20, 0x28].map(|at| quad(header + at));
        if quad(header) & 0xffff_ffff != LOAD {
            continue;
        }
        assert!(physical + in_memory <= entry::image().start, "L1 would lie over its loader");
        let (with, without) = bytes(physical, in_memory).split_at_mut(in_file as usize);
        with.copy_from_slice(&file[offset as usize..][..in_file as usize]);
        without.fill(0);
    }
    quad(0x18) as u32
}
