//! Shadow pages: what is known of each shadow table, and the roles they play.
//! May: take-frame. Context: run-loop.

use crate::{
    failing::Failing,
    mutant::{Mutant, planted},
    primitive::{
        AtomicU32, AtomicU64, Mutex,
        Ordering::{Acquire, Relaxed, Release},
    },
    refs::RefList,
};
use alloc::{boxed::Box, vec::Vec};
use pv_abi::addr::Gfn;

/// Number of a shadow page, and of its frame in the pool.
pub type PageId = u32;

/// One entry of one shadow table: `page * 512 + index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef(pub u32);

impl EntryRef {
    /// Names entry `index` of page `page`.
    #[must_use]
    pub const fn new(page: PageId, index: usize) -> Self {
        Self(page << 9 | index as u32)
    }

    /// The page.
    #[must_use]
    pub const fn page(self) -> PageId {
        self.0 >> 9
    }

    /// The index in it.
    #[must_use]
    pub const fn index(self) -> usize {
        (self.0 & 511) as usize
    }
}

bitflags::bitflags! {
    /// What a shadow page stands for, beside its guest frame. Two tables with one frame and
    /// different roles are different shadow pages.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Role: u32 {
        /// Bits 0..3: level, 4 for a root.
        const LEVEL = 7;
        /// Holds only translations that user mode may use. Such a tree serves both modes.
        const USER_ONLY = 1 << 3;
        /// Every entry above had U (only told apart where SMEP makes it matter).
        const USER_PATH = 1 << 4;
        /// Stands for a large guest page: the frame is the first one mapped, not a table.
        const DIRECT = 1 << 5;
        /// The large page may be written (its D bit is set).
        const DIRECT_WRITE = 1 << 6;
        /// The large page may not be executed from supervisor mode (SMEP, or NX).
        const DIRECT_NX = 1 << 7;
    }
}

impl Role {
    /// A role at `level` with `flags`.
    #[must_use]
    pub const fn at(level: u8, flags: Self) -> Self {
        Self::from_bits_retain(level as u32 | flags.bits())
    }

    /// The level, 4 to 1.
    #[must_use]
    pub const fn level(self) -> u8 {
        (self.bits() & Self::LEVEL.bits()) as u8
    }
}

/// What a shadow page stands for, in one word: guest frame and role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key of `gfn` in `role`.
    #[inline(always)]
    #[must_use]
    pub const fn new(gfn: Gfn, role: Role) -> Self {
        Self(gfn.0 << 12 | role.bits() as u64)
    }

    /// The guest frame it shadows, or the first one it maps (DIRECT).
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> 12)
    }

    /// The role.
    #[must_use]
    pub const fn role(self) -> Role {
        Role::from_bits_retain((self.0 & 0xfff) as u32)
    }
}

/// What is known of one shadow table.
#[derive(Debug)]
#[repr(align(16))]
pub struct ShadowPage {
    key: AtomicU64,
    state: AtomicU32,
    /// Next page with the same guest frame (in the map), or next free page. Stays what it is from
    /// the page's end to its reuse, for those who still look at the chain.
    pub(crate) next: AtomicU32,
    /// Bit n: entries 8n..8n+8 may be nonzero. Lets a sweep cost what is there.
    used: AtomicU64,
    /// Entries that link here.
    pub(crate) parents: RefList,
    /// Epoch in which the page was retired.
    retired_in: AtomicU64,
    /// Next page in the order of retirement.
    next_retired: AtomicU32,
}

/// No page: ends a chain.
pub(crate) const NONE: PageId = u32::MAX;
/// More pages than this cannot be numbered by an [`EntryRef`] in a list of references.
pub(crate) const MOST: u32 = (1 << 22) - 1;

/// The page is being torn down: it must not be linked any more.
const DEAD: u32 = 1 << 31;
/// vCPUs that have this root loaded.
const LOADED: u32 = 0xffff;

impl ShadowPage {
    fn new() -> Self {
        Self {
            key: AtomicU64::new(0),
            state: AtomicU32::new(DEAD),
            next: AtomicU32::new(NONE),
            used: AtomicU64::new(0),
            parents: RefList::new(),
            retired_in: AtomicU64::new(0),
            next_retired: AtomicU32::new(NONE),
        }
    }

    /// What it stands for.
    #[inline(always)]
    pub fn key(&self) -> Key {
        Key(self.key.load(Relaxed))
    }

    /// The guest frame it shadows, or the first one it maps (DIRECT).
    pub fn gfn(&self) -> Gfn {
        self.key().gfn()
    }

    /// Its role.
    pub fn role(&self) -> Role {
        self.key().role()
    }

    /// Groups of eight entries that may be nonzero.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Acquire)
    }

    /// Must precede any store of a nonzero entry.
    #[inline]
    pub(crate) fn mark_used(&self, index: usize) {
        let bit = 1 << (index / 8);
        if self.used.load(Relaxed) & bit == 0 {
            self.used.fetch_or(bit, Release);
        }
    }

    pub(crate) fn clear_used(&self) {
        self.used.store(0, Relaxed);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state.load(Acquire) & DEAD != 0
    }

    /// Ends the page unless it is loaded somewhere; false if it is, or is dead already.
    pub(crate) fn die(&self) -> bool {
        let alive = if planted(Mutant::LoadedEvicted) { self.loaded() } else { 0 };
        self.state.compare_exchange(alive, DEAD, Acquire, Relaxed).is_ok()
    }

    pub(crate) fn loaded(&self) -> u32 {
        self.state.load(Acquire) & LOADED
    }

    /// Keeps the page from dying until [`Self::unload`]; false if it is dead.
    #[inline]
    pub(crate) fn load(&self) -> bool {
        let count = |state| (state & DEAD == 0).then_some(state + 1);
        self.state.fetch_update(Acquire, Relaxed, count).is_ok()
    }

    pub(crate) fn unload(&self) {
        self.state.fetch_sub(1, Release);
    }
}

/// Every shadow page of a VM, and the list of those that are free. Free tables are all zero.
#[derive(Debug)]
pub(crate) struct Pages {
    pages: Box<[ShadowPage]>,
    free: Mutex<Free>,
    /// Makes allocations fail, in tests.
    pub(crate) failing: Failing,
}

#[derive(Debug)]
struct Free {
    head: PageId,
    count: u32,
}

impl Pages {
    pub(crate) fn new(capacity: u32) -> Self {
        let pages: Vec<_> = (0..capacity).map(|_| ShadowPage::new()).collect();
        for (id, page) in pages.iter().enumerate().take(capacity.saturating_sub(1) as usize) {
            page.next.store(id as u32 + 1, Relaxed);
        }
        let head = if capacity == 0 { NONE } else { 0 };
        let free = Mutex::new(Free { head, count: capacity });
        Self { pages: pages.into_boxed_slice(), free, failing: Failing::default() }
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.pages.len() as u32
    }

    #[inline]
    pub(crate) fn get(&self, id: PageId) -> &ShadowPage {
        &self.pages[id as usize]
    }

    pub(crate) fn free_count(&self) -> u32 {
        self.free.lock().count
    }

    /// Takes a free page for `gfn` in `role`; its table is all zero but for what `fill` puts
    /// there. A vCPU that remembers the number may use the page as soon as it is not dead.
    pub(crate) fn alloc(&self, gfn: Gfn, role: Role, fill: impl FnOnce(PageId)) -> Option<PageId> {
        if self.failing.strikes() {
            return None;
        }
        let id = {
            let mut free = self.free.lock();
            let id = free.head;
            if id == NONE {
                return None;
            }
            free.head = self.get(id).next.load(Relaxed);
            free.count -= 1;
            id
        };
        let page = self.get(id);
        page.key.store(Key::new(gfn, role).0, Relaxed);
        page.next.store(NONE, Relaxed);
        if planted(Mutant::FilledLate) {
            page.state.store(0, Release);
        }
        fill(id);
        page.state.store(0, Release);
        Some(id)
    }

    /// Gives back a page whose table is zero again.
    pub(crate) fn free(&self, id: PageId) {
        let mut free = self.free.lock();
        self.get(id).next.store(free.head, Relaxed);
        free.head = id;
        free.count += 1;
    }
}

/// Pages that have died and wait until every vCPU has passed a quiescent point, oldest first.
#[derive(Debug)]
pub(crate) struct Retired {
    first: PageId,
    last: PageId,
    count: usize,
}

impl Retired {
    pub(crate) const fn new() -> Self {
        Self { first: NONE, last: NONE, count: 0 }
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// Adds page `id`, which died in `epoch`, not before those that are here already.
    pub(crate) fn push(&mut self, pages: &Pages, id: PageId, epoch: u64) {
        let page = pages.get(id);
        page.retired_in.store(epoch, Relaxed);
        page.next_retired.store(NONE, Relaxed);
        if self.last == NONE {
            self.first = id;
        } else {
            pages.get(self.last).next_retired.store(id, Relaxed);
        }
        self.last = id;
        self.count += 1;
    }

    /// Takes the oldest page if it died in an epoch before `passed`.
    pub(crate) fn pop(&mut self, pages: &Pages, passed: u64) -> Option<PageId> {
        let id = self.first;
        let page = (id != NONE).then(|| pages.get(id))?;
        if page.retired_in.load(Relaxed) >= passed {
            return None;
        }
        self.first = page.next_retired.load(Relaxed);
        if self.first == NONE {
            self.last = NONE;
        }
        self.count -= 1;
        Some(id)
    }
}

#[cfg(not(all(test, loom)))]
const _: () = assert!(size_of::<ShadowPage>() == 48);
