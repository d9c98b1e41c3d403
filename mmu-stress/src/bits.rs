//! Bits of page-table entries, with the one rule they have here: what is reserved.

pub use shadow_mmu::pte::{A, ADDRESS, D, NX, P, PS, U, W};

use crate::{api::Gfn, guest::PHYSICAL_BITS};

/// The frame in an entry.
#[must_use]
pub const fn frame(entry: u64) -> Gfn {
    Gfn((entry & ADDRESS) >> 12)
}

/// 4 KiB frames of a page that is a leaf at `level`.
#[must_use]
pub const fn frames(level: u8) -> u64 {
    1 << (9 * (level as u32 - 1))
}

/// True for an entry at `level` that maps a page.
#[must_use]
pub const fn is_leaf(entry: u64, level: u8) -> bool {
    level == 1 || level < 4 && entry & PS != 0
}

/// True if a present guest entry at `level` has a reserved bit set.
#[must_use]
pub const fn is_reserved(entry: u64, level: u8) -> bool {
    let width = ADDRESS & !((1 << PHYSICAL_BITS) - 1);
    let size = level > 1 && entry & PS != 0;
    // Bit 12 of a large page is PAT.
    let low = if size && level < 4 { (frames(level) - 2) << 12 } else { 0 };
    entry & (width | low) != 0 || size && level == 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pages_are_aligned() {
        assert!(is_reserved(PS | P, 4));
        assert!(!is_reserved(PS | P | 1 << 12, 2), "PAT");
        assert!(is_reserved(PS | P | 1 << 13, 2));
        assert!(is_reserved(PS | P | 1 << 29, 3));
        assert!(!is_reserved(PS | P | 1 << 30, 3));
        assert!(!is_reserved(PS | P | 1 << 13, 1), "PAT bit of a small page");
        assert!(is_reserved(1 << 40 | P, 1));
    }
}
