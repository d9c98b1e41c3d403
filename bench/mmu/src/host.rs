//! The world of the shadow MMU in plain memory, with nothing on the hot path but loads.
//!
//! Guest frames below [`Host::backed`] have contents and may hold page tables; the rest of RAM is
//! data that no program here reads, so it has none. Frames at or above `frames` are no RAM.

use crossbeam_utils::CachePadded;
use pv_abi::addr::{Gfn, Gpa, Hpa};
use shadow_mmu::{
    GuestMemory, TablePool, TlbOps,
    env::{ENTRIES, Table},
};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Relaxed, Release},
};

/// Host frame of guest frame 0.
const RAM_BASE: u64 = 0x10_0000;
/// Host frame of pool frame 0, above all RAM.
const POOL_BASE: u64 = 0x1_0000_0000;

/// How much of everything there is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Guest frames with contents.
    pub backed: u64,
    /// Guest frames.
    pub frames: u64,
    /// Frames for shadow tables.
    pub pool: u32,
}

/// Guest memory, table pool and TLB.
#[derive(Debug)]
pub struct Host {
    backed: Box<[Table]>,
    frames: u64,
    pool: Box<[Table]>,
    /// One bit per frame: the guest may see that it is shadowed.
    shown: Box<[AtomicU64]>,
    /// Flushes requested, as L1 counts them.
    flushes: CachePadded<AtomicU64>,
}

fn tables(count: u64) -> Box<[Table]> {
    (0..count).map(|_| Table([const { AtomicU64::new(0) }; ENTRIES])).collect()
}

impl Host {
    /// Zeroed memory.
    #[must_use]
    pub fn new(size: Size) -> Self {
        Self {
            backed: tables(size.backed),
            frames: size.frames,
            pool: tables(size.pool.into()),
            shown: (0..size.frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            flushes: CachePadded::new(AtomicU64::new(0)),
        }
    }

    /// Guest frames that have contents.
    #[must_use]
    pub fn backed(&self) -> u64 {
        self.backed.len() as u64
    }

    /// Guest frames.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// Flushes requested so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Relaxed)
    }

    /// Stores a guest entry past every mapping, as a device would.
    ///
    /// # Panics
    /// If the frame has no contents.
    pub fn store(&self, at: Gpa, value: u64) {
        self.entry(at).store(value, Release);
    }

    /// The guest entry at `at`.
    ///
    /// # Panics
    /// If the frame has no contents.
    #[must_use]
    pub fn entry(&self, at: Gpa) -> &AtomicU64 {
        &self.backed[at.gfn().0 as usize].0[(at.page_offset() / 8) as usize]
    }
}

impl GuestMemory for Host {
    #[inline]
    fn table_at(&self, gfn: Gfn) -> Option<&Table> {
        self.backed.get(gfn.0 as usize)
    }

    #[inline]
    fn host_frame(&self, gfn: Gfn) -> Option<Hpa> {
        (gfn.0 < self.frames).then_some(Hpa((gfn.0 + RAM_BASE) << 12))
    }

    #[inline]
    fn guest_frame(&self, hpa: Hpa) -> Gfn {
        Gfn((hpa.0 >> 12) - RAM_BASE)
    }

    fn show_table(&self, gfn: Gfn, shadowed: bool) {
        let word = &self.shown[gfn.0 as usize / 64];
        let bit = 1 << (gfn.0 % 64);
        if shadowed {
            word.fetch_or(bit, AcqRel);
        } else {
            word.fetch_and(!bit, AcqRel);
        }
    }
}

impl TablePool for Host {
    fn capacity(&self) -> u32 {
        self.pool.len() as u32
    }

    #[inline]
    fn table(&self, id: u32) -> &Table {
        &self.pool[id as usize]
    }

    #[inline]
    fn hpa(&self, id: u32) -> Hpa {
        Hpa((u64::from(id) + POOL_BASE) << 12)
    }

    #[inline]
    fn id(&self, hpa: Hpa) -> u32 {
        ((hpa.0 >> 12) - POOL_BASE) as u32
    }
}

impl TlbOps for Host {
    fn flush_all(&self) {
        self.flushes.fetch_add(1, AcqRel);
    }
}
