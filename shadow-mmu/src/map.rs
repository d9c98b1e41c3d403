//! Finds shadow pages by guest frame.
//! May: nothing. Context: run-loop.
//!
//! The key is the frame alone: a note or a write names a frame, and every page that shadows it, in
//! whatever role, must hear of it. Pages of one frame form a chain, rarely longer than two. An array
//! has the head of each frame's chain, and a lock bit for those who change the chain.
//!
//! Who only looks takes no lock. A page that has left its chain still leads on to the next one until it
//! is reused, and that is after the reader's quiescent point. Looking is an exchange all the same:
//! so it comes before somebody's change of the head, who then sees what the reader has seen of the guest's
//! tables, or after it.

use crate::{
    mutant::{Mutant, planted},
    page::{NONE, PageId, Pages, Role, ShadowPage},
    primitive::{
        AtomicU32,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
        spin_loop,
    },
};
use alloc::boxed::Box;
use core::iter;
use pv_abi::addr::Gfn;

/// Somebody changes the chain.
const LOCK: u32 = 1 << 31;

/// The first page of a chain, and the lock of the chain. The number is stored plus one, zero is none.
#[derive(Debug, Default)]
struct Head(AtomicU32);

/// The head of a chain that the owner changes; unlocks when dropped.
struct Locked<'a> {
    head: &'a Head,
    first: PageId,
}

impl Head {
    const fn page(word: u32) -> PageId {
        (word & !LOCK).wrapping_sub(1)
    }

    fn lock(&self) -> Locked<'_> {
        loop {
            let word = self.0.load(Relaxed) & !LOCK;
            if self.0.compare_exchange_weak(word, word | LOCK, Acquire, Relaxed).is_ok() {
                return Locked { head: self, first: Self::page(word) };
            }
            spin_loop();
        }
    }

    fn look(&self) -> PageId {
        if planted(Mutant::PlainLook) {
            return Self::page(self.0.load(Acquire));
        }
        Self::page(self.0.fetch_or(0, AcqRel))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // An exchange: who looked before has let the owner see what it saw.
        self.head.0.swap(self.first.wrapping_add(1), AcqRel);
    }
}

/// The chains of all guest frames.
#[derive(Debug)]
pub(crate) struct PageMap {
    tables: Box<[Head]>,
    /// Pages that stand for a large guest page shadow no table: chains of their own, by the block
    /// that they map, of 2 MiB and of 1 GiB.
    direct: [Box<[Head]>; 2],
}

/// How [`PageMap::find_or_make`] came by its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It was there: its entries may be older than the guest's (rule I3).
    Found,
    /// It is new and empty.
    Made,
}

fn heads(count: u64) -> Box<[Head]> {
    (0..count).map(|_| Head::default()).collect()
}

impl PageMap {
    pub(crate) fn new(frames: u64) -> Self {
        let direct = [1, 2].map(|level| heads(frames.div_ceil(1 << (9 * level))));
        Self { tables: heads(frames), direct }
    }

    fn head(&self, gfn: Gfn, role: Role) -> Option<&Head> {
        if role.contains(Role::DIRECT) {
            let level = role.level();
            self.direct[usize::from(level) - 1].get((gfn.0 >> (9 * level)) as usize)
        } else {
            self.tables.get(gfn.0 as usize)
        }
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
        let mut head = self.head(gfn, role)?.lock();
        let same = |(_, page): &(PageId, &ShadowPage)| page.role() == role && !page.is_dead();
        if let Some((id, _)) = chain(pages, head.first).find(same) {
            return Some((id, Origin::Found));
        }
        let made = pages.alloc(gfn, role, fill)?;
        pages.get(made).next.store(head.first, Relaxed);
        if head.first == NONE {
            first();
        }
        head.first = made;
        Some((made, Origin::Made))
    }

    /// Every live page that shadows the table in `gfn`. A page may die while the caller looks at
    /// it; its table stays readable until the caller's quiescent point.
    pub(crate) fn chain<'a>(
        &self,
        pages: &'a Pages,
        gfn: Gfn,
    ) -> impl Iterator<Item = PageId> + 'a {
        self.pages(pages, gfn).map(|(id, _)| id)
    }

    /// The same, with the record of each.
    #[inline(always)]
    pub(crate) fn pages<'a>(
        &self,
        pages: &'a Pages,
        gfn: Gfn,
    ) -> impl Iterator<Item = (PageId, &'a ShadowPage)> + 'a {
        let first = self.tables.get(gfn.0 as usize).map_or(NONE, Head::look);
        chain(pages, first).filter(|(_, page)| !page.is_dead())
    }

    /// Forgets a dead page. `last` is called if no page is left for its frame.
    pub(crate) fn remove(&self, pages: &Pages, id: PageId, last: impl FnOnce()) {
        let page = pages.get(id);
        let Some(head) = self.head(page.gfn(), page.role()) else { return };
        let mut head = head.lock();
        let next = page.next.load(Relaxed);
        if head.first == id {
            head.first = next;
            if next == NONE {
                last();
            }
            return;
        }
        let mut before = chain(pages, head.first);
        if let Some((_, before)) = before.find(|(_, page)| page.next.load(Relaxed) == id) {
            before.next.store(next, Release);
        }
    }
}

/// The pages from `first` on.
#[inline(always)]
fn chain(pages: &Pages, first: PageId) -> impl Iterator<Item = (PageId, &ShadowPage)> {
    let some = move |id: PageId| (id != NONE).then(|| (id, pages.get(id)));
    iter::successors(some(first), move |(_, page)| some(page.next.load(Acquire)))
}
