//! Bits of page-table entries, the guest's and ours.
//! May: nothing. Input: guest-controlled.

use pv_abi::addr::{Gfn, Hpa};

/// Present.
pub const P: u64 = 1 << 0;
/// Writable.
pub const W: u64 = 1 << 1;
/// User.
pub const U: u64 = 1 << 2;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty (leaf entries).
pub const D: u64 = 1 << 6;
/// Page size: a leaf above level 1.
pub const PS: u64 = 1 << 7;
/// No execute.
pub const NX: u64 = 1 << 63;
/// Physical address of a 4 KiB frame.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A guest page-table entry, as read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct GuestPte(pub u64);

impl GuestPte {
    /// Bit test.
    #[must_use]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Present.
    #[must_use]
    pub const fn present(self) -> bool {
        self.has(P)
    }

    /// The frame it points to.
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        Gfn((self.0 & ADDRESS) >> 12)
    }

    /// True for an entry at `level` (2 or 3) that maps a large page.
    #[must_use]
    pub const fn is_large(self, level: u8) -> bool {
        level > 1 && self.has(PS)
    }

    /// True for an entry above level 1 whose size bits are reserved: PS in level 4, low address
    /// bits of a large page.
    #[must_use]
    pub const fn has_bad_size(self, level: u8) -> bool {
        if !self.has(PS) {
            return false;
        }
        match level {
            4 => true,
            3 => self.0 & 0x3fff_e000 != 0,
            _ => self.0 & 0x001f_e000 != 0,
        }
    }

    /// Equal but for A and D, which the MMU itself sets.
    #[must_use]
    pub const fn same_mapping(self, other: Self) -> bool {
        (self.0 ^ other.0) & !(A | D) == 0
    }
}

/// An entry of a shadow table.
///
/// Present entries are what the hardware walks: always U, because the guest runs at CPL3 in both
/// of its modes; W and NX are the guest's. Absent entries are zero or carry an install token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Spte(pub u64);

/// Marks an absent entry as being installed. The token's address bits are all ones, so that a
/// CPU that speculates past P=0 (L1TF) finds no memory there.
const INSTALLING: u64 = 1 << 1 | ADDRESS;
/// Where a token says whose it is: bits 2..12. Bits 52..63 tell the tokens of a vCPU apart.
const TOKEN_OWNER: u32 = 2;
const TOKEN_NUMBER: u32 = 52;
/// vCPUs that can have tokens.
pub const OWNERS: usize = 1 << 10;

impl Spte {
    /// No entry.
    pub const ABSENT: Self = Self(0);

    /// Present: the hardware may use it.
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 & P != 0
    }

    /// Present or absent: no install is under way.
    #[must_use]
    pub const fn is_settled(self) -> bool {
        self.present() || self.0 == Self::ABSENT.0
    }

    /// Bit test.
    #[must_use]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// It maps a large page. Nothing else has the bit: small entries use the default memory type.
    #[must_use]
    pub const fn is_large(self) -> bool {
        self.has(P | PS)
    }

    /// In a table above level 1: it links a table.
    #[must_use]
    pub const fn is_link(self) -> bool {
        self.0 & (P | PS) == P
    }

    /// The frame or table it points to.
    #[must_use]
    pub const fn hpa(self) -> Hpa {
        Hpa(self.0 & ADDRESS)
    }

    /// A token of vCPU `owner`, unlike those of all others.
    #[must_use]
    pub const fn token(owner: usize) -> Self {
        Self(INSTALLING | ((owner % OWNERS) as u64) << TOKEN_OWNER)
    }

    /// The owner's next token after this one. After 2048 they come again: who has kept one for so
    /// long and takes it away makes an install fail, which every install may.
    #[must_use]
    pub const fn next_token(self) -> Self {
        Self(self.0.wrapping_add(1 << TOKEN_NUMBER) & !NX)
    }

    /// An entry that points to the shadow table at `hpa` for guest entry `entry`: W and NX are
    /// mirrored, so that the hardware combines them over the levels as the guest's would.
    #[must_use]
    pub const fn link(hpa: Hpa, entry: GuestPte) -> Self {
        Self(hpa.0 | P | U | A | entry.0 & (W | NX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_absent_and_distinct() {
        let mut seen = std::collections::HashSet::new();
        for owner in (0..OWNERS).step_by(7) {
            let mut token = Spte::token(owner);
            for _ in 0..2048 {
                token = token.next_token();
                assert!(!token.present() && token != Spte::ABSENT);
                assert_eq!(token.0 & ADDRESS, ADDRESS, "no real frame");
                assert!(seen.insert(token.0));
            }
        }
    }

    #[test]
    fn reserved_bits_depend_on_level_and_size() {
        let paging = crate::walk::Paging::new(40, false);
        let reserved = |value, level| paging.is_reserved(GuestPte(value), level);
        assert!(!reserved(0xff_ffff_f000 | P, 1));
        assert!(reserved(1 << 40 | P, 1));
        assert!(!reserved(PS | P, 1), "PAT");
        assert!(reserved(PS | P, 4));
        assert!(!reserved(PS | P, 3));
        assert!(reserved(PS | P | 1 << 13, 2));
        assert!(!reserved(P | 1 << 13, 2));
        assert!(!reserved(PS | P | 1 << 12, 2), "PAT");
        assert!(!reserved(P | 1 << 52 | 1 << 9, 1), "software bits");
    }
}
