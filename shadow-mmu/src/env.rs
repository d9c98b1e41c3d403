//! The world as the shadow MMU sees it: three traits.
//! May: nothing. Input: guest-controlled addresses.

use crate::primitive::{Entries, Ordering};
use pv_abi::addr::{Gfn, Gpa, Hpa};

/// Entries of a page table.
pub const ENTRIES: usize = 512;

/// A shadow page table as the hardware sees it.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Table(pub Entries);

/// Guest-physical memory. Other vCPUs and devices change it at any time; nothing read here may be
/// read a second time in the belief that it is the same.
pub trait GuestMemory {
    /// The page in `gfn`, seen as a page table; `None` outside RAM.
    fn table_at(&self, gfn: Gfn) -> Option<&Table>;

    /// The host frame behind a guest frame; `None` outside RAM.
    fn host_frame(&self, gfn: Gfn) -> Option<Hpa>;

    /// The host address of the `512^(level - 1)` guest frames from `gfn` on, a multiple of their
    /// number, if the host's frames are consecutive and aligned alike. `None` where they are not,
    /// or where large pages are not wanted.
    fn host_block(&self, gfn: Gfn, level: u8) -> Option<Hpa> {
        let _ = (gfn, level);
        None
    }

    /// The guest frame that `host_frame` gave `hpa` for.
    fn guest_frame(&self, hpa: Hpa) -> Gfn;

    /// Loads the page-table entry at `at` (8-aligned) in one access; `None` outside RAM.
    #[inline(always)]
    fn load(&self, at: Gpa) -> Option<u64> {
        Some(self.table_at(at.gfn())?.0[(at.page_offset() / 8) as usize].load(Ordering::Acquire))
    }

    /// Shows the guest whether a frame is shadowed as a page table (the table bitmap of the
    /// extension ABI). Called with `true` before the first entry of the frame is read.
    fn show_table(&self, gfn: Gfn, shadowed: bool);

    /// The guest frame that holds the bit of `gfn` in the table bitmap, if the guest is shown one.
    fn bitmap_frame(&self, gfn: Gfn) -> Option<Gfn> {
        let _ = gfn;
        None
    }
}

/// The host frames that hold shadow tables, numbered from 0.
pub trait TablePool {
    /// How many there are.
    fn capacity(&self) -> u32;

    /// The table in frame `id`.
    fn table(&self, id: u32) -> &Table;

    /// The table at `hpa`, which [`TablePool::hpa`] gave.
    #[inline(always)]
    fn linked(&self, hpa: Hpa) -> &Table {
        self.table(self.id(hpa))
    }

    /// Host-physical address of frame `id`.
    fn hpa(&self, id: u32) -> Hpa;

    /// The inverse of [`TablePool::hpa`].
    fn id(&self, hpa: Hpa) -> u32;
}

/// Hardware translation caches of every vCPU of the VM.
pub trait TlbOps {
    /// When this returns, no vCPU uses a translation, or a table, cached before the call. A vCPU
    /// that is not running may satisfy it when it next runs.
    fn flush_all(&self);
}
