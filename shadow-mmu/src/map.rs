//! Finds shadow pages by guest frame.
//! May: nothing. Context: run-loop.
//!
//! The key is the frame alone: a note or a write names a frame, and every page that shadows it, in
//! whatever role, must hear of it. Pages of one frame form a chain, rarely longer than two.

use crate::{
    page::{NONE, PageId, Pages, Role},
    primitive::{Mutex, Ordering::Relaxed},
};
use arrayvec::ArrayVec;
use core::array;
use hashbrown::HashMap;
use pv_abi::addr::Gfn;
use rustc_hash::FxBuildHasher;

const SHARDS: usize = 16;

type Shard = HashMap<u64, PageId, FxBuildHasher>;

#[derive(Debug)]
pub(crate) struct PageMap {
    shards: [Mutex<Shard>; SHARDS],
}

/// How [`PageMap::find_or_make`] came by its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It was there: its entries may be older than the guest's (rule I3).
    Found,
    /// It is new and empty.
    Made,
}

/// A copy of a frame's chain. A frame has at most four levels times four roles.
pub(crate) type Chain = ArrayVec<PageId, 16>;

/// Pages that stand for a large guest page shadow no table: they live in a key space of their own.
fn key(gfn: Gfn, role: Role) -> u64 {
    gfn.0 | u64::from(role.contains(Role::DIRECT)) << 63
}

impl PageMap {
    pub(crate) fn new() -> Self {
        Self { shards: array::from_fn(|_| Mutex::new(Shard::default())) }
    }

    fn shard(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[key as usize % SHARDS]
    }

    /// The live page for `gfn` in `role`, made if there is none; `None` when pages ran out.
    /// `first` is called when a page is made for a frame that had none, and `fill` when one is
    /// made at all, before anybody can see it.
    pub(crate) fn find_or_make(
        &self,
        pages: &Pages,
        gfn: Gfn,
        role: Role,
        first: impl FnOnce(),
        fill: impl FnOnce(PageId),
    ) -> Option<(PageId, Origin)> {
        let key = key(gfn, role);
        let mut shard = self.shard(key).lock();
        let head = shard.get(&key).copied().unwrap_or(NONE);
        let mut id = head;
        while id != NONE {
            let page = pages.get(id);
            if page.role() == role && !page.is_dead() {
                return Some((id, Origin::Found));
            }
            id = page.next.load(Relaxed);
        }
        let made = pages.alloc(gfn, role, fill)?;
        pages.get(made).next.store(head, Relaxed);
        shard.insert(key, made);
        if head == NONE {
            first();
        }
        Some((made, Origin::Made))
    }

    /// Every live page that shadows the table in `gfn`. A page may die while the caller looks at
    /// it; its table stays readable until the caller's quiescent point.
    pub(crate) fn chain(&self, pages: &Pages, gfn: Gfn) -> Chain {
        let mut chain = Chain::new();
        let shard = self.shard(gfn.0).lock();
        let mut id = shard.get(&gfn.0).copied().unwrap_or(NONE);
        while id != NONE {
            let page = pages.get(id);
            if !page.is_dead() {
                chain.push(id);
            }
            id = page.next.load(Relaxed);
        }
        chain
    }

    /// Forgets a dead page. `last` is called if no page is left for its frame.
    pub(crate) fn remove(&self, pages: &Pages, id: PageId, last: impl FnOnce()) {
        let page = pages.get(id);
        let key = key(page.gfn(), page.role());
        let mut shard = self.shard(key).lock();
        let next = page.next.load(Relaxed);
        let head = shard.get(&key).copied().unwrap_or(NONE);
        if head == id {
            if next == NONE {
                shard.remove(&key);
                last();
            } else {
                shard.insert(key, next);
            }
            return;
        }
        let mut before = head;
        while before != NONE {
            let candidate = pages.get(before);
            let after = candidate.next.load(Relaxed);
            if after == id {
                candidate.next.store(next, Relaxed);
                return;
            }
            before = after;
        }
    }
}
