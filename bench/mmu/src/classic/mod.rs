//! A conventional shadow MMU, to measure against: what one writes when a lock excludes everybody
//! else.
//!
//! Shadow pages in a hash map, reverse maps as small vectors, tables write-protected when they are
//! shadowed. The first write to one makes it *unsync* and writable; a flush protects all unsync
//! tables again and compares them. Pages are freed at once. No install tokens, no second look at
//! the guest's tables, no epochs: the lock does their work.
//!
//! It has what the benchmarks use and the comparison needs: two roots with shared user tables,
//! fault-around, sync, zap. Large guest pages, SMEP, notes and running out of memory gracefully
//! are left out, which costs it nothing.

mod fault;
mod rmap;
mod sync;
mod walk;
mod zap;

pub use rmap::{Alone, RmapCell, Shared};

use crate::{design::PHYSICAL_BITS, host::Host};
use hashbrown::HashMap;
use pv_abi::addr::Gfn;
use rustc_hash::FxBuildHasher;
use shadow_mmu::{
    TablePool,
    page::{EntryRef, Key, PageId, Role},
    walk::Paging,
};
use smallvec::SmallVec;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
};

/// What is known of one shadow table.
#[derive(Debug)]
struct Page {
    key: Key,
    live: bool,
    /// vCPUs that have this root loaded.
    loaded: u32,
    /// Bit n: entries 8n..8n+8 may be nonzero.
    used: AtomicU64,
    parents: SmallVec<[EntryRef; 2]>,
}

impl Page {
    /// Must precede any store of a nonzero entry.
    #[inline]
    fn mark_used(&self, index: usize) {
        let bit = 1 << (index / 8);
        if self.used.load(Relaxed) & bit == 0 {
            self.used.fetch_or(bit, Release);
        }
    }
}

/// How the guest's stores to a frame are found out about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tracking {
    /// No table: nobody cares.
    None,
    /// A table that is mapped read-only everywhere.
    Protected,
    /// A table that may be written until the next flush.
    Unsync,
}

/// The MMU. `R` holds the reverse map of a frame.
#[derive(Debug)]
pub struct Classic<R> {
    pages: Vec<Page>,
    free: Vec<PageId>,
    map: HashMap<u64, SmallVec<[PageId; 2]>, FxBuildHasher>,
    rmaps: Box<[R]>,
    tracking: Box<[Tracking]>,
    unsync: Vec<Gfn>,
    paging: Paging,
}

/// The shadow roots of an address space.
#[derive(Clone, Copy, Debug)]
pub struct Roots {
    gfn: Gfn,
    pub(crate) supervisor: PageId,
    pub(crate) user: PageId,
}

/// No shadow page is free.
#[derive(Debug)]
pub struct NoMemory;

impl<R: RmapCell> Classic<R> {
    /// An MMU without a single shadow page.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        let page = || Page {
            key: Key::new(Gfn(0), Role::empty()),
            live: false,
            loaded: 0,
            used: AtomicU64::new(0),
            parents: SmallVec::new(),
        };
        Self {
            pages: (0..host.capacity()).map(|_| page()).collect(),
            free: (0..host.capacity()).rev().collect(),
            map: HashMap::with_hasher(FxBuildHasher),
            rmaps: (0..host.frames()).map(|_| R::default()).collect(),
            tracking: vec![Tracking::None; host.frames() as usize].into(),
            unsync: Vec::new(),
            paging: Paging::new(PHYSICAL_BITS, false),
        }
    }

    /// Free shadow pages.
    #[must_use]
    pub fn free_pages(&self) -> u32 {
        self.free.len() as u32
    }

    fn page(&self, id: PageId) -> &Page {
        &self.pages[id as usize]
    }

    fn page_mut(&mut self, id: PageId) -> &mut Page {
        &mut self.pages[id as usize]
    }

    fn tracking(&self, gfn: Gfn) -> Tracking {
        self.tracking[gfn.0 as usize]
    }

    fn set_tracking(&mut self, gfn: Gfn, tracking: Tracking) {
        self.tracking[gfn.0 as usize] = tracking;
    }

    /// The page for `gfn` in `role`, made if there is none; true if it was there.
    fn find_or_make(
        &mut self,
        host: &Host,
        gfn: Gfn,
        role: Role,
    ) -> Result<(PageId, bool), NoMemory> {
        let key = Key::new(gfn, role);
        let chain = self.map.entry(gfn.0).or_default();
        if let Some(&id) = chain.iter().find(|&&id| self.pages[id as usize].key == key) {
            return Ok((id, true));
        }
        let Some(id) = self.free.pop() else {
            if chain.is_empty() {
                self.map.remove(&gfn.0);
            }
            return Err(NoMemory);
        };
        let first = chain.is_empty();
        chain.push(id);
        let page = self.page_mut(id);
        page.key = key;
        page.live = true;
        if first {
            self.set_tracking(gfn, Tracking::Protected);
            self.write_protect(host, gfn);
        }
        Ok((id, false))
    }

    /// Loads the address space of `root`, in place of `previous`.
    ///
    /// # Errors
    /// [`NoMemory`]; the old root stays loaded.
    pub fn load_root(
        &mut self,
        host: &Host,
        previous: Option<Roots>,
        root: Gfn,
    ) -> Result<Roots, NoMemory> {
        self.flush(host);
        let (supervisor, _) = self.find_or_make(host, root, Role::at(4, Role::empty()))?;
        let (user, _) = self.find_or_make(host, root, Role::at(4, Role::USER_ONLY))?;
        self.page_mut(supervisor).loaded += 1;
        self.page_mut(user).loaded += 1;
        if let Some(previous) = previous {
            self.unload_root(previous);
        }
        Ok(Roots { gfn: root, supervisor, user })
    }

    /// Unloads a vCPU's root: the vCPU ends.
    pub fn unload_root(&mut self, roots: Roots) {
        self.page_mut(roots.supervisor).loaded -= 1;
        self.page_mut(roots.user).loaded -= 1;
    }

    /// Drops what is known of a root that is not loaded.
    pub fn drop_root(&mut self, host: &Host, root: Gfn) {
        for id in self.chain(root) {
            if self.page(id).key.role().level() == 4 {
                self.kill_if_unused(host, id);
            }
        }
    }

    /// The pages that shadow `gfn`.
    fn chain(&self, gfn: Gfn) -> SmallVec<[PageId; 2]> {
        self.map.get(&gfn.0).cloned().unwrap_or_default()
    }
}
