//! Holds a VM's shadow MMU together.
//! May: nothing. Context: run-loop.

use crate::{
    dirty::DirtyLog,
    env::{GuestMemory, TablePool, TlbOps},
    fault::Outcome,
    hot::{Bitmap, HotList},
    large::Blocks,
    map::PageMap,
    mutant::{Mutant, planted},
    page::{MOST, PageId, Pages, Retired, ShadowPage},
    primitive::{
        AtomicBool, AtomicU32, AtomicU64, Mutex,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    refs::{CHUNK_SIZE, Chunks, RefList},
    walk::Paging,
};
use alloc::{boxed::Box, vec::Vec};
use core::ops::Range;
use pv_abi::addr::{Gfn, Gva};

/// How a VM wants its MMU.
#[derive(Clone, Debug)]
pub struct Config {
    /// Guest frames: the reverse maps' size. Frames at or above it are never mapped.
    pub frames: u64,
    /// PML4 slots of the upper half that the guest may use at first.
    pub upper_slots: Range<usize>,
    /// Physical address width and SMEP, as the guest was told.
    pub paging: Paging,
    /// Root entries of L1's own: (slot, entry, also in the user-mode root). The slots are outside
    /// `upper_slots`, or the guest's own entries there are ignored.
    pub fixed: Vec<(usize, u64, bool)>,
    /// The highest level at which an entry may map a page: 3 where the CPU has 1 GiB pages.
    pub largest: u8,
    /// PML4 slots that are L1's, whatever the guest's tables say.
    pub reserved_slots: Range<usize>,
}

/// A VM's shadow MMU. Shared by its vCPUs; every method takes `&self`.
pub struct Mmu<E> {
    pub(crate) env: E,
    pub(crate) config: Config,
    pub(crate) pages: Pages,
    pub(crate) map: PageMap,
    /// Who maps each guest frame.
    pub(crate) rmaps: Box<[RefList]>,
    pub(crate) chunks: Chunks,
    /// Chunks for the links of shadow pages, which leaf entries must not use up.
    pub(crate) link_chunks: Chunks,
    /// Who maps frames by large entries, and where none may.
    pub(crate) blocks: Blocks,
    /// Frames that were written, while somebody wants to know.
    pub(crate) log: DirtyLog,
    /// Frames that are shadowed as a table.
    pub(crate) tables: Bitmap,
    /// Tables that were written through a mapping that is gone, D bit and all.
    pub(crate) written: Bitmap,
    /// Tables that may only be mapped read-only.
    pub(crate) protected: Bitmap,
    pub(crate) hot: HotList,
    /// Root tables the guest has pinned (notes mode).
    pub(crate) pins: Bitmap,
    /// The guest announces its upper-level stores ([`Mmu::note`]); set once, never cleared.
    notes: AtomicBool,
    /// PML4 slots of the upper half that the guest may use: first, and one past the last.
    upper_slots: [AtomicU32; 2],
    retired: Mutex<Retired>,
    /// Where [`Mmu::shrink`] goes on.
    pub(crate) hand: AtomicU32,
    epoch: AtomicU64,
    seen: Box<[Seen]>,
}

/// Epoch in which a vCPU has passed a quiescent point; `IDLE` while it cannot use any table. It is
/// written at every entry to the guest: each has its cache line, and the one that is fetched with it.
#[repr(align(128))]
struct Seen(AtomicU64);

const IDLE: u64 = u64::MAX;

/// What a vCPU's MMU work amounted to since start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Faults that ended in a mapping.
    pub mapped: u64,
    /// Leaf entries installed, fault-around included.
    pub fills: u64,
    /// Large entries installed.
    pub large_fills: u64,
    /// Faults that found the entry already there.
    pub spurious: u64,
    /// Faults given to the guest.
    pub reflected: u64,
    /// Shadow tables linked.
    pub links: u64,
    /// Hot tables that were protected because nobody wrote them.
    pub protected: u64,
    /// Writes that made a protected table hot.
    pub unprotected: u64,
    /// Flushes of a whole address space.
    pub flushes: u64,
    /// Tables a flush compared because they had been written.
    pub synced: u64,
    /// Notes drained.
    pub notes: u64,
    /// Roots built.
    pub roots: u64,
}

impl Stats {
    /// A fault ended.
    #[inline(always)]
    pub(crate) fn resolved(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Mapped => self.mapped += 1,
            Outcome::Reflect(_) => self.reflected += 1,
            Outcome::Mmio(_) | Outcome::NoMemory => {}
        }
    }
}

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// An MMU without a single shadow page. `vcpus` bounds the vCPU numbers.
    ///
    /// # Panics
    /// If the pool has 2^22 tables (16 GiB) or more.
    #[must_use]
    pub fn new(env: E, config: Config, vcpus: usize) -> Self {
        let capacity = env.capacity();
        assert!(capacity <= MOST, "a VM has at most {MOST} shadow pages");
        let frames = config.frames;
        let Range { start, end } = config.upper_slots;
        Self {
            env,
            config,
            pages: Pages::new(capacity),
            map: PageMap::new(frames),
            rmaps: (0..frames).map(|_| RefList::new()).collect(),
            chunks: Chunks::new(Self::leaf_chunks(frames)),
            link_chunks: Chunks::new(Self::link_chunks(capacity)),
            blocks: Blocks::new(frames),
            log: DirtyLog::new(frames),
            tables: Bitmap::new(frames),
            written: Bitmap::new(frames),
            protected: Bitmap::new(frames),
            hot: HotList::new(),
            pins: Bitmap::new(frames),
            notes: AtomicBool::new(false),
            upper_slots: [AtomicU32::new(start as u32), AtomicU32::new(end as u32)],
            retired: Mutex::new(Retired::new()),
            hand: AtomicU32::new(0),
            epoch: AtomicU64::new(0),
            seen: (0..vcpus).map(|_| Seen(AtomicU64::new(IDLE))).collect(),
        }
    }

    /// A frame that is mapped more than twice costs a chunk: shared libraries, mostly, and what a
    /// process shares with its children.
    const fn leaf_chunks(frames: u64) -> u32 {
        (frames * 3 / 16) as u32
    }

    /// So does a table that is linked more than twice: the kernel's.
    const fn link_chunks(capacity: u32) -> u32 {
        capacity / 2
    }

    /// Memory outside the tables themselves that [`Mmu::new`] will take, bytes.
    #[must_use]
    pub const fn overhead(frames: u64, capacity: u32) -> u64 {
        let per_frame = size_of::<RefList>() + size_of::<AtomicU32>();
        // Five bitmaps, and what is kept of blocks of 2 MiB and more.
        let bits_per_frame = 5 + 1;
        frames * per_frame as u64
            + frames * bits_per_frame / 8
            + capacity as u64 * size_of::<ShadowPage>() as u64
            + (Self::leaf_chunks(frames) + Self::link_chunks(capacity)) as u64 * CHUNK_SIZE as u64
    }

    /// The environment.
    pub fn env(&self) -> &E {
        &self.env
    }

    /// Free shadow pages.
    pub fn free_pages(&self) -> u32 {
        self.pages.free_count()
    }

    /// From now on the guest announces every store into an upper-level table (rules N1 to N4).
    pub fn enable_notes(&self) {
        self.notes.store(true, Relaxed);
    }

    pub(crate) fn notes_mode(&self) -> bool {
        self.notes.load(Relaxed)
    }

    /// True if the guest may have translations for `gva` at all.
    pub fn is_legal(&self, gva: Gva) -> bool {
        gva.0 < 1 << 47 || gva.is_canonical() && self.is_legal_upper(gva.index(4))
    }

    pub(crate) fn is_legal_upper(&self, slot: usize) -> bool {
        let [start, end] = &self.upper_slots;
        let legal = start.load(Relaxed) as usize..end.load(Relaxed) as usize;
        legal.contains(&slot) && !self.config.reserved_slots.contains(&slot)
    }

    /// Changes which PML4 slots of the upper half the guest may use. What was mapped in slots it
    /// loses is dropped with its roots.
    pub fn set_upper_slots(&self, slots: Range<usize>) {
        self.upper_slots[0].store(slots.start as u32, Relaxed);
        self.upper_slots[1].store(slots.end as u32, Relaxed);
        self.notes_lost();
    }

    pub(crate) fn rmap(&self, gfn: Gfn) -> &RefList {
        &self.rmaps[gfn.0 as usize]
    }

    /// Hands a dead page over. Its frame is reused once no vCPU can walk it (deferred freeing).
    pub(crate) fn retire(&self, id: PageId) {
        let mut retired = self.retired.lock();
        if planted(Mutant::FreedAtOnce) {
            return self.pages.free(id);
        }
        retired.push(&self.pages, id, self.epoch.load(Relaxed));
    }

    /// Pages that wait to be free.
    pub(crate) fn retired_count(&self) -> usize {
        self.retired.lock().count()
    }

    /// A quiescent point: vCPU `vcpu` is about to run the guest, its stale translations gone.
    #[inline]
    pub fn entering(&self, vcpu: usize) {
        let seen = &self.seen[vcpu].0;
        let epoch = self.epoch.load(Acquire);
        if seen.load(Relaxed) == IDLE {
            // Before it looks at any table.
            seen.swap(epoch, AcqRel);
        } else {
            seen.store(epoch, Release);
        }
    }

    /// [`Mmu::entering`] for a vCPU that has not been idle since the last time.
    #[inline]
    pub fn entering_again(&self, vcpu: usize) {
        self.seen[vcpu].0.store(self.epoch.load(Acquire), Release);
    }

    /// vCPU `vcpu` stops running for a while: nothing waits for it.
    pub fn idle(&self, vcpu: usize) {
        self.seen[vcpu].0.store(IDLE, Release);
    }

    /// Frees what every vCPU has passed by. Cheap when nothing is retired.
    #[inline]
    pub fn reclaim(&self) {
        if self.retired.lock().count() != 0 {
            self.reclaim_some();
        }
    }

    #[cold]
    fn reclaim_some(&self) {
        let mut retired = self.retired.lock();
        // What is retired from here on waits for entries that happen from here on.
        self.epoch.fetch_add(1, AcqRel);
        let passed = self.seen.iter().map(|seen| seen.0.load(Acquire)).min().unwrap_or(IDLE);
        let passed = if planted(Mutant::FreedWhileWalked) { IDLE } else { passed };
        while let Some(id) = retired.pop(&self.pages, passed) {
            self.pages.free(id);
        }
    }
}

impl<E> core::fmt::Debug for Mmu<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Mmu").field("config", &self.config).finish_non_exhaustive()
    }
}
