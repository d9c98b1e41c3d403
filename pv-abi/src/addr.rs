//! Addresses that say which world they belong to.
//! May: nothing. Input: guest-controlled.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Offset within the 4 KiB page.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & 0xfff
            }

            /// The address `bytes` further on, wrapping like the machine does.
            #[must_use]
            pub const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// The start of the page this address lies in.
            #[must_use]
            pub const fn page(self) -> Self {
                Self(self.0 & !0xfff)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// Guest-virtual address: what L2 code uses.
    Gva
}
address! {
    /// Guest-physical address: what L2's page tables hold.
    Gpa
}
address! {
    /// Host-physical address. "Host" is L1's own machine: what the shadow tables hold.
    Hpa
}

impl Gpa {
    /// The guest frame this address lies in.
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> crate::PAGE_SHIFT)
    }
}

/// Guest frame number: a [`Gpa`] divided by the page size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Gfn(pub u64);

impl Gfn {
    /// First byte of the frame.
    #[must_use]
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << crate::PAGE_SHIFT)
    }
}

impl fmt::Debug for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gfn({:#x})", self.0)
    }
}

impl Gva {
    /// True when bits 63:47 are all equal, as four-level paging demands.
    #[must_use]
    pub const fn is_canonical(self) -> bool {
        let top = (self.0 as i64) >> 47;
        top == 0 || top == -1
    }

    /// The address with bits 63:48 replaced by copies of bit 47 (PVM ABI: `user_gsbase`).
    #[must_use]
    pub const fn canonicalized(self) -> Self {
        Self((((self.0 << 16) as i64) >> 16) as u64)
    }

    /// Index into the page table of `level` (4 = PML4 ... 1 = leaf table).
    #[must_use]
    pub const fn index(self, level: u8) -> usize {
        ((self.0 >> (12 + 9 * (level as u32 - 1))) & 0x1ff) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_is_decided_by_bits_63_to_47() {
        assert!(Gva(0).is_canonical());
        assert!(Gva(0x7fff_ffff_ffff).is_canonical());
        assert!(!Gva(0x8000_0000_0000).is_canonical());
        assert!(!Gva(0xfffe_ffff_ffff_ffff).is_canonical());
        assert!(!Gva(0xffff_7fff_ffff_ffff).is_canonical());
        assert!(Gva(0xffff_8000_0000_0000).is_canonical());
    }

    #[test]
    fn canonicalized_copies_bit_47() {
        assert_eq!(Gva(0x8000_0000_0000).canonicalized(), Gva(0xffff_8000_0000_0000));
        assert_eq!(Gva(0xabcd_0000_0000_0000).canonicalized(), Gva(0));
    }

    #[test]
    fn indices_split_an_address() {
        let gva = Gva(0xffff_8400_0020_3456);
        assert_eq!([gva.index(4), gva.index(3), gva.index(2), gva.index(1)], [264, 0, 1, 3]);
    }
}
