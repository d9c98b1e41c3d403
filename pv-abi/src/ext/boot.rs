//! Lays out what L1 tells a shim or a native guest at its start.
//! May: nothing. Input: written by L1, trusted by its guest.

use crate::addr::Gpa;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What L1 tells the shim: its window address is in RDI at the shim's entry, RSI holds the
/// vCPU index.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ShimBoot {
    /// [`ShimBoot::MAGIC`].
    pub magic: u64,
    /// [`super::VERSION`].
    pub version: u32,
    /// vCPUs of this VM.
    pub vcpus: u32,
    /// RAM frames, the guest's own: 0..ram_pages.
    pub ram_pages: u64,
    /// First frame past the window's own frames.
    pub end_pages: u64,
    /// TSC ticks per second.
    pub tsc_hz: u64,
    /// Nanoseconds since 1970 when the TSC was `wall_tsc`.
    pub wall_ns: u64,
    /// See `wall_ns`.
    pub wall_tsc: u64,
    /// The kernel image as it came from the user.
    pub kernel: Span,
    /// The initial ramdisk; empty when there is none.
    pub initrd: Span,
    /// The command line, without a terminating zero.
    pub cmdline: Span,
    /// Frames that are neither RAM nor used by the window: zeroed.
    pub spare: Span,
    /// The vCPU areas' own pages: PVCS, data, notes, stack of vCPU 0, then of vCPU 1, ...
    pub areas: Span,
}

layout! {
    ShimBoot: 0x88 {
        0x00 magic,
        0x08 version,
        0x0c vcpus,
        0x10 ram_pages,
        0x18 end_pages,
        0x20 tsc_hz,
        0x28 wall_ns,
        0x30 wall_tsc,
        0x38 kernel,
        0x48 initrd,
        0x58 cmdline,
        0x68 spare,
        0x78 areas,
    }
}

impl ShimBoot {
    /// "RoostShm".
    pub const MAGIC: u64 = u64::from_le_bytes(*b"RoostShm");
}

/// A range of guest-physical memory.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Span {
    /// First byte.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
}

layout! {
    Span: 0x10 {
        0x0 gpa,
        0x8 len,
    }
}

impl Span {
    /// First byte past the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.gpa + self.len
    }
}

/// What L1 tells a native guest: guest-physical address in RSI at its entry.
///
/// A native guest starts in supervisor mode at its entry with its memory identity-mapped by
/// 2 MiB pages (U=0, writable) in tables that L1 placed at [`NativeBoot::TABLES`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NativeBoot {
    /// [`NativeBoot::MAGIC`].
    pub magic: u64,
    /// [`super::VERSION`].
    pub version: u32,
    /// vCPUs of this VM.
    pub vcpus: u32,
    /// Bytes of memory, from guest-physical 0.
    pub memory: u64,
    /// TSC ticks per second.
    pub tsc_hz: u64,
    /// The command line, without a terminating zero.
    pub cmdline: Span,
    /// A boot module (the initrd option); empty when there is none.
    pub module: Span,
}

layout! {
    NativeBoot: 0x40 {
        0x00 magic,
        0x08 version,
        0x0c vcpus,
        0x10 memory,
        0x18 tsc_hz,
        0x20 cmdline,
        0x30 module,
    }
}

impl NativeBoot {
    /// "RoostNat".
    pub const MAGIC: u64 = u64::from_le_bytes(*b"RoostNat");
    /// Where L1 puts this block.
    pub const GPA: Gpa = Gpa(0x1000);
    /// Where L1 puts the command line; at most a page.
    pub const CMDLINE: Gpa = Gpa(0x2000);
    /// First of the start-up page tables: PML4, PDPT, then one page directory per GiB.
    pub const TABLES: Gpa = Gpa(0x3000);
    /// Lowest address an image may be linked at.
    pub const LOWEST: Gpa = Gpa(0x10_0000);
}
