//! What the shadow MMU sees of a VM: its memory, its table pool, its TLBs.
//! May: guest-memory, take-frame. Context: any. Input: guest-controlled addresses.

use super::{
    dirty_flaw::{Flaw, planted},
    ram::GuestRam,
};
use crate::{
    hw::physmap::{Frame, frame, table},
    vcpu::remote::{Remote, shoot_down},
};
use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicU64, Ordering::AcqRel};
use pv_abi::{
    PAGE_SIZE,
    addr::{Gfn, Gpa, Hpa},
};
use shadow_mmu::env::{GuestMemory, Table, TablePool, TlbOps};

/// Frames that a page of the table bitmap tells of.
const FRAMES_PER_PAGE: u64 = 8 * PAGE_SIZE as u64;

/// The environment of one VM's MMU.
#[derive(Debug)]
pub struct VmEnv {
    /// The VM's memory.
    pub ram: GuestRam,
    pool: Hpa,
    pool_pages: u32,
    /// First guest frame of the table bitmap, if the guest is shown one.
    bitmap: Option<Gfn>,
    /// What all CPUs see of the vCPUs.
    pub remotes: Box<[Arc<Remote>]>,
}

impl VmEnv {
    /// An environment over `ram` with `pool_pages` zeroed frames at `pool` for tables, and of `vcpus`
    /// vCPUs.
    #[must_use]
    pub fn new(
        ram: GuestRam,
        pool: Hpa,
        pool_pages: u32,
        bitmap: Option<Gfn>,
        vcpus: usize,
    ) -> Self {
        let remotes = (0..vcpus).map(|_| Arc::default()).collect();
        Self { ram, pool, pool_pages, bitmap, remotes }
    }

    /// Where the tables lie.
    #[must_use]
    pub const fn pool(&self) -> (Hpa, u32) {
        (self.pool, self.pool_pages)
    }

    /// The page of guest memory at `gfn`.
    #[inline]
    #[must_use]
    pub fn page(&self, gfn: Gfn) -> Option<&'static Frame> {
        self.ram.host_frame(gfn).map(frame)
    }

    #[inline]
    fn word(&self, at: Gpa) -> Option<&'static AtomicU64> {
        Some(&self.page(at.gfn())?[(at.page_offset() / 8) as usize])
    }
}

impl GuestMemory for VmEnv {
    #[inline(always)]
    fn table_at(&self, gfn: Gfn) -> Option<&Table> {
        self.ram.host_frame(gfn).map(table)
    }

    #[inline]
    fn host_frame(&self, gfn: Gfn) -> Option<Hpa> {
        self.ram.host_frame(gfn)
    }

    fn host_block(&self, gfn: Gfn, level: u8) -> Option<Hpa> {
        self.ram.host_block(gfn, level)
    }

    #[inline]
    fn guest_frame(&self, hpa: Hpa) -> Gfn {
        self.ram.guest_frame(hpa)
    }

    fn show_table(&self, gfn: Gfn, shadowed: bool) {
        let Some(bitmap) = self.bitmap else { return };
        let at = Gpa(bitmap.gpa().0 + gfn.0 / 64 * 8);
        let Some(word) = self.word(at) else { return };
        let bit = 1 << (gfn.0 % 64);
        if shadowed {
            word.fetch_or(bit, AcqRel);
        } else {
            word.fetch_and(!bit, AcqRel);
        }
    }

    fn bitmap_frame(&self, gfn: Gfn) -> Option<Gfn> {
        let bitmap = self.bitmap.filter(|_| !planted(Flaw::Bitmap))?;
        Some(Gfn(bitmap.0 + gfn.0 / FRAMES_PER_PAGE))
    }
}

impl TablePool for VmEnv {
    fn capacity(&self) -> u32 {
        self.pool_pages
    }

    #[inline]
    fn table(&self, id: u32) -> &Table {
        assert!(id < self.pool_pages);
        table(Hpa(self.pool.0 + (u64::from(id) << 12)))
    }

    #[inline(always)]
    fn linked(&self, hpa: Hpa) -> &Table {
        table(hpa)
    }

    #[inline]
    fn hpa(&self, id: u32) -> Hpa {
        Hpa(self.pool.0 + (u64::from(id) << 12))
    }

    #[inline]
    fn id(&self, hpa: Hpa) -> u32 {
        ((hpa.0 - self.pool.0) >> 12) as u32
    }
}

impl TlbOps for VmEnv {
    fn flush_all(&self) {
        for remote in &self.remotes {
            remote.flush_translations();
        }
        shoot_down(self.remotes.iter().map(|remote| &**remote));
    }
}
