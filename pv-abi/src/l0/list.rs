//! Entries of the lists that operations name by address and count (spec section 4.3).
//! May: nothing. Input: untrusted.
//!
//! A list is contiguous in L1's RAM, its address a multiple of 8. L0 copies an entry once, checks
//! the copy and uses the copy.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Alignment of a list's address, bytes.
pub const ALIGN: u64 = 8;

bitflags::bitflags! {
    /// What L2 may do with a page.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Access: u32 {
        /// Read. Always set.
        const READ = 1 << 0;
        /// Write.
        const WRITE = 1 << 1;
        /// Execute. Always set without the feature EXEC_CONTROL.
        const EXECUTE = 1 << 2;
    }

    /// Flags of a [`CpuidLeaf`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct LeafFlags: u32 {
        /// The entry answers only its subleaf; without it, every subleaf.
        const SUBLEAF = 1 << 0;
    }

    /// Flags of a [`MsrRange`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct MsrFlags: u32 {
        /// With VALUE: a write has no effect; without it, a write is #GP.
        const IGNORE_WRITES = 1 << 0;
    }
}

/// A part of L2's address space where mappings may be: list of CREATE_VM.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Region {
    /// First L2 guest-physical address, page-aligned.
    pub gpa: u64,
    /// Pages of 4 KiB, not 0.
    pub pages: u64,
}

layout! {
    Region: 0x10 {
        0x0 gpa,
        0x8 pages,
    }
}

/// A run of pages: list of MAP, UNMAP, PROTECT, SHARE and UNSHARE.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MapRange {
    /// First L2 guest-physical address, page-aligned.
    pub gpa: u64,
    /// MAP: first L1 physical address, page-aligned. Others: 0.
    pub l1: u64,
    /// Pages of 4 KiB, not 0.
    pub pages: u64,
    /// MAP and PROTECT: [`Access`]. Others: 0.
    pub access: u32,
    /// Zero.
    pub reserved: u32,
}

layout! {
    MapRange: 0x20 {
        0x00 gpa,
        0x08 l1,
        0x10 pages,
        0x18 access,
        0x1c reserved,
    }
}

/// What CPUID answers for a leaf: list of SET_CPUID and DEFINE_CPUID_TABLE.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CpuidLeaf {
    /// EAX of the question.
    pub leaf: u32,
    /// ECX of the question, with [`LeafFlags::SUBLEAF`]; else 0.
    pub subleaf: u32,
    /// [`LeafFlags`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// EAX, EBX, ECX, EDX of the answer.
    pub answer: [u32; 4],
}

layout! {
    CpuidLeaf: 0x20 {
        0x00 leaf,
        0x04 subleaf,
        0x08 flags,
        0x0c reserved,
        0x10 answer,
    }
}

open_enum! {
    /// What L0 does when L2 accesses an MSR.
    MsrAction: u32 {
        /// #GP.
        Deny = 0,
        /// Exit to L1: [`super::exit::ExitReason::MsrRead`], `MsrWrite`.
        Exit = 1,
        /// A read gives `value`; a write is #GP or ignored ([`MsrFlags::IGNORE_WRITES`]).
        Value = 2,
        /// A cell per vCPU that starts as `value`; a write of bits outside `mask` is #GP.
        Shadow = 3,
        /// L0 or the hardware holds it for the vCPU, with its architectural effect.
        Pass = 4,
    }
}

/// A rule for a run of MSRs: list of SET_MSR_POLICY.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MsrRange {
    /// First index.
    pub first: u32,
    /// MSRs, not 0; the last index must not wrap.
    pub count: u32,
    /// [`MsrAction`].
    pub action: u32,
    /// [`MsrFlags`].
    pub flags: u32,
    /// VALUE, SHADOW: what a read gives, at first. Others: 0.
    pub value: u64,
    /// SHADOW: bits that L2 may set. Others: 0.
    pub mask: u64,
}

layout! {
    MsrRange: 0x20 {
        0x00 first,
        0x04 count,
        0x08 action,
        0x0c flags,
        0x10 value,
        0x18 mask,
    }
}

/// One MSR: list of GET_MSRS (which fills `value`) and SET_MSRS.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MsrValue {
    /// Index.
    pub index: u32,
    /// Zero.
    pub reserved: u32,
    /// Value.
    pub value: u64,
}

layout! {
    MsrValue: 0x10 {
        0x0 index,
        0x4 reserved,
        0x8 value,
    }
}

/// Bytes of the buffer of GET_LAPIC and SET_LAPIC: the xAPIC register page's first KiB.
pub const LAPIC_BYTES: usize = 1024;

/// DIRTY_TAKE: the first address and the number of pages are multiples of this many pages, so
/// that a bitmap is whole 64-bit words. Bit n of word w is page 64 w + n of the range.
pub const DIRTY_GRAIN: u64 = 64;

/// L2 guest-physical addresses that no [`Region`] may touch: the architectural home of interrupt
/// controllers and firmware.
pub const RESERVED_GPA: core::ops::Range<u64> = 0xfec0_0000..0x1_0000_0000;

impl MapRange {
    /// First L2 address past the run; `None` if the run is empty, misaligned or wraps.
    #[must_use]
    pub const fn end(&self) -> Option<u64> {
        page_run_end(self.gpa, self.pages)
    }

    /// First L1 address past the run, as [`Self::end`].
    #[must_use]
    pub const fn l1_end(&self) -> Option<u64> {
        page_run_end(self.l1, self.pages)
    }
}

impl Region {
    /// First L2 address past the region; `None` if it is empty, misaligned or wraps.
    #[must_use]
    pub const fn end(&self) -> Option<u64> {
        page_run_end(self.gpa, self.pages)
    }
}

const fn page_run_end(start: u64, pages: u64) -> Option<u64> {
    if pages == 0 || !start.is_multiple_of(crate::PAGE_SIZE as u64) {
        return None;
    }
    match pages.checked_mul(crate::PAGE_SIZE as u64) {
        Some(bytes) => start.checked_add(bytes),
        None => None,
    }
}

impl MsrRange {
    /// Last index; `None` if the run is empty or wraps.
    #[must_use]
    pub const fn last(&self) -> Option<u32> {
        match self.count.checked_sub(1) {
            Some(more) => self.first.checked_add(more),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_or_are_refused() {
        let range = |gpa, pages| MapRange { gpa, pages, ..MapRange::default() };
        assert_eq!(range(0x1000, 2).end(), Some(0x3000));
        assert_eq!(range(0x1000, 0).end(), None, "empty");
        assert_eq!(range(0x1001, 1).end(), None, "misaligned");
        assert_eq!(range(0x1000, 1 << 52).end(), None, "bytes overflow");
        assert_eq!(range(!0xfff, 1).end(), None, "end overflows");
    }

    #[test]
    fn msr_runs_end_or_are_refused() {
        let range = |first, count| MsrRange { first, count, ..MsrRange::default() };
        assert_eq!(range(0x800, 0x100).last(), Some(0x8ff));
        assert_eq!(range(u32::MAX, 1).last(), Some(u32::MAX));
        assert_eq!(range(u32::MAX, 2).last(), None);
        assert_eq!(range(0, 0).last(), None);
    }
}
