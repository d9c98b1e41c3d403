//! Where things are in the memory of a guest that L0 runs.
//! May: nothing. Input: the tool's bundle.

use arrayvec::ArrayVec;
use core::ops::Range;
use pv_abi::l0::list::RESERVED_GPA;

/// Descriptors, boot parameters and page tables for the first instruction.
pub const GDT: u64 = 0x6000;
/// The kernel's boot parameters, a page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables: the root, a level-3 table and [`MAPPED`] in GiB level-2 tables.
pub const TABLES: u64 = 0x8000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes that the command line may have, its final zero included.
pub const CMDLINE_BYTES: u64 = 0x1_0000;
/// Firmware tables, where kernels of old look for them.
pub const ACPI: Range<u64> = 0xe_0000..0x10_0000;
/// The lowest address a kernel is loaded at.
pub const KERNEL: u64 = 0x10_0000;
/// What the first page tables map, one to one.
pub const MAPPED: u64 = 4 << 30;

/// Memory below this stays below; the rest is above 4 GiB, for what is between belongs to devices.
const LOW_END: u64 = 3 << 30;
const HIGH_START: u64 = 4 << 30;
const _: () = assert!(LOW_END <= RESERVED_GPA.start && HIGH_START >= RESERVED_GPA.end);

/// Guest-physical addresses of `bytes` of memory: one piece or two.
#[must_use]
pub fn ram(bytes: u64) -> ArrayVec<Range<u64>, 2> {
    let low = bytes.min(LOW_END);
    let high = HIGH_START..HIGH_START + (bytes - low);
    [0..low, high].into_iter().filter(|piece| !piece.is_empty()).collect()
}

/// What the kernel may use, in ascending order.
#[must_use]
pub fn usable(bytes: u64) -> ArrayVec<Range<u64>, 3> {
    let mut all = ArrayVec::new();
    for piece in ram(bytes) {
        if piece.start == 0 {
            all.push(0..ACPI.start.min(piece.end));
            all.push(ACPI.end.min(piece.end)..piece.end);
        } else {
            all.push(piece);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_the_devices_their_place() {
        assert!(ram(1 << 30).iter().eq([&(0..1 << 30)]));
        assert!(ram(LOW_END).iter().eq([&(0..LOW_END)]));
        let large = 5 << 30;
        assert_eq!(ram(large)[..], [0..LOW_END, HIGH_START..HIGH_START + (2 << 30)]);
        let total = |pieces: &[Range<u64>]| pieces.iter().map(|p| p.end - p.start).sum::<u64>();
        assert_eq!(total(&ram(large)), large);
        assert_eq!(total(&usable(large)), large - (ACPI.end - ACPI.start));
    }
}
