//! Takes entries and pages away.
//! May: nothing. Context: run-loop.
//!
//! An entry is exchanged for nothing, never for another target (rule I4). A page whose last link
//! is gone dies: nobody can link it any more, its entries go, and its frame waits until every vCPU
//! has passed a quiescent point with its translations flushed.

use crate::{
    env::{ENTRIES, GuestMemory, TablePool, TlbOps},
    map::Origin,
    mmu::Mmu,
    mutant::{Mutant, planted},
    page::{EntryRef, PageId, Role},
    primitive::{
        Ordering::{AcqRel, Acquire, Relaxed},
        spin_loop,
    },
    pte::{D, Spte, W},
    refs::RefList,
};
use core::ops::Range;
use pv_abi::addr::Gfn;

/// Looks at a list of links before its lock is taken again.
const PATIENCE: usize = if cfg!(loom) { 1 } else { 1000 };

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// Exchanges entry `at`, which is present, for nothing if it still is `now`, or leads where `now`
    /// does: the hardware sets A and D at any time, and permissions may have followed. The entry as
    /// it was in the end.
    fn take(&self, at: EntryRef, mut now: Spte) -> Option<Spte> {
        let entry = &self.env.table(at.page()).0[at.index()];
        while let Err(other) = entry.compare_exchange(now.0, 0, AcqRel, Acquire) {
            let other = Spte(other);
            if planted(Mutant::TakeGivesUp) {
                return None;
            }
            let same = other.present() && other.hpa() == now.hpa();
            now = same.then_some(other)?;
        }
        Some(now)
    }

    /// Takes the token away that `at` had when it was `now`. If it was too late for that, the entry
    /// that the install has put there, which counts as the token (rule I2); `now` if that is none.
    fn cancel(&self, at: EntryRef, now: Spte) -> Option<Spte> {
        if now.present() {
            return Some(now);
        }
        if planted(Mutant::TokenLeft) {
            return None;
        }
        let entry = &self.env.table(at.page()).0[at.index()];
        let now = entry.compare_exchange(now.0, 0, AcqRel, Acquire).err().map(Spte)?;
        (now.present() && !planted(Mutant::SuccessorLeft)).then_some(now)
    }

    /// Removes entry `at` if it still is `now`, or what an install has made of that. The child of a link
    /// dies if it has no other.
    #[inline]
    pub(crate) fn zap(&self, at: EntryRef, now: Spte) {
        let Some(now) = self.cancel(at, now) else { return };
        // Asked only now: a large entry and a link may follow each other in one place.
        if now.is_large() || self.pages.get(at.page()).role().level() == 1 {
            self.zap_leaf(at, now);
        } else {
            self.zap_link(at, now);
        }
    }

    fn zap_leaf(&self, at: EntryRef, now: Spte) {
        let gfn = self.env.guest_frame(now.hpa());
        // Locked before the entry goes: under the lock the list names exactly the entries that map
        // the frame, and no D bit is on its way from an entry to `written`.
        let mut mappings = self.mappings(at, now).lock(&self.chunks);
        if let Some(now) = self.take(at, now) {
            self.keep_dirty(gfn, now);
            if !planted(Mutant::StaleReference) {
                mappings.remove(at);
            }
        }
    }

    fn zap_link(&self, at: EntryRef, now: Spte) {
        let child = self.env.id(now.hpa());
        {
            // As for leaves. A reference to an entry that is gone would be to a page that may have
            // been retired before the vCPU entered L1 that finds it here.
            let mut parents = self.pages.get(child).parents.lock(&self.link_chunks);
            if self.take(at, now).is_none() {
                return;
            }
            parents.remove(at);
        }
        if !planted(Mutant::LinkUnflushed) {
            self.env.flush_all();
        }
        self.kill_if_unused(child);
    }

    /// References to the entries that map what `at`, which is `now`, maps.
    pub(crate) fn mappings(&self, at: EntryRef, now: Spte) -> &RefList {
        let gfn = self.env.guest_frame(now.hpa());
        if now.is_large() {
            self.blocks.mappings(self.pages.get(at.page()).role().level(), gfn)
        } else {
            self.rmap(gfn)
        }
    }

    /// Entry `now`, which maps `gfn`, goes: what its D bit says of a table is kept.
    pub(crate) fn keep_dirty(&self, gfn: Gfn, now: Spte) {
        // No table is in a block that a large entry maps.
        if now.has(D) && !now.is_large() && self.tables.get(gfn) {
            // TLBs that have it dirty write on, and no D bit shows it any more.
            self.env.flush_all();
            if !planted(Mutant::DirtForgotten) {
                self.written.set(gfn);
            }
        }
    }

    /// Ends page `id` if nothing links it, loads it or pins it. True if it died.
    pub(crate) fn kill_if_unused(&self, id: PageId) -> bool {
        let page = self.pages.get(id);
        let kept = page.role().level() == 4 && self.pins.get(page.gfn());
        !kept && self.kill(id)
    }

    /// Ends page `id` if nothing links it or loads it; a pin only says that it is worth keeping.
    /// True if it died.
    pub(crate) fn kill(&self, id: PageId) -> bool {
        let page = self.pages.get(id);
        {
            let parents = page.parents.lock(&self.link_chunks);
            if !parents.is_empty() || !page.die() {
                return false;
            }
        }
        let gfn = page.gfn();
        if page.role().contains(Role::DIRECT) {
            self.map.remove(&self.pages, id, || ());
        } else {
            self.map.remove(&self.pages, id, || self.no_longer_table(gfn));
        }
        self.clear_entries(id, 0..ENTRIES);
        if page.role().level() == 4 {
            for &(slot, _, _) in &self.config.fixed {
                self.env.table(id).0[slot].store(0, Relaxed);
            }
        }
        page.clear_used();
        if !planted(Mutant::LinkUnflushed) {
            self.env.flush_all();
        }
        self.retire(id);
        true
    }

    /// Removes every entry of page `id` in `range`, L1's own slots aside.
    pub(crate) fn clear_entries(&self, id: PageId, range: Range<usize>) {
        self.for_each_entry(id, |index, now| {
            if range.contains(&index) {
                self.zap(EntryRef::new(id, index), now);
            }
        });
    }

    /// Calls `visit` with the index and the value of each entry of page `id` that is not absent,
    /// L1's own slots aside.
    #[inline]
    pub(crate) fn for_each_entry(&self, id: PageId, mut visit: impl FnMut(usize, Spte)) {
        let page = self.pages.get(id);
        let root = page.role().level() == 4;
        let table = self.env.table(id);
        let mut groups = page.used();
        while groups != 0 {
            let first = 8 * groups.trailing_zeros() as usize;
            groups &= groups - 1;
            for index in first..first + 8 {
                let now = Spte(table.0[index].load(Acquire));
                let own = root && self.config.reserved_slots.contains(&index);
                if now != Spte::ABSENT && !own {
                    visit(index, now);
                }
            }
        }
    }

    /// Removes every leaf entry that `list` names; true if there was one, so that a flush is due.
    pub(crate) fn zap_leaves(&self, list: &RefList) -> bool {
        let mut list = list.lock(&self.chunks);
        let mut any = false;
        while let Some(at) = list.newest() {
            let now = Spte(self.env.table(at.page()).0[at.index()].load(Acquire));
            // It succeeds: present entries are in their lists, and go under their locks.
            if let Some(now) = self.take(at, now) {
                self.keep_dirty(self.env.guest_frame(now.hpa()), now);
                list.remove(at);
                any = true;
            }
        }
        any
    }

    /// Removes every link to page `id`; true if there was one, so that a flush is due.
    pub(crate) fn zap_links(&self, id: PageId) -> bool {
        let (page, hpa) = (self.pages.get(id), self.env.hpa(id));
        let mut any = false;
        loop {
            let mut parents = page.parents.lock(&self.link_chunks);
            let Some(at) = parents.newest() else { return any };
            let entry = &self.env.table(at.page()).0[at.index()];
            let now = Spte(entry.load(Acquire));
            if now.present() && now.hpa() == hpa {
                if self.take(at, now).is_some() {
                    parents.remove(at);
                    any = true;
                }
                continue;
            }
            // Somebody is making this link, or has failed to. If it still has its token it fails now.
            if !now.present() {
                let _ = entry.compare_exchange(now.0, 0, AcqRel, Acquire);
            }
            // It takes the reference out, and needs the lock for that, so it is given time. Not until
            // the list looks otherwise: with another link in the place of this one it looks the same.
            let before = parents.snapshot();
            drop(parents);
            let patience = if planted(Mutant::ListBelieved) { usize::MAX } else { PATIENCE };
            for _ in 0..patience {
                spin_loop();
                if page.parents.snapshot() != before {
                    break;
                }
            }
        }
    }

    /// The page for `gfn` in `role`, made if there is none. Its frame, if it is a table, is
    /// hot or protected from before the first entry.
    pub(crate) fn find_or_make(&self, gfn: Gfn, role: Role) -> Option<(PageId, Origin)> {
        if role.contains(Role::DIRECT) {
            return self.map.find_or_make(&self.pages, gfn, role, || (), |_| ());
        }
        let first = || {
            // Protected from the first on, until there is a place among the hot ones.
            self.protected.set(gfn);
            self.tables.set(gfn);
            self.add_table(gfn);
            let unprotect = || {
                self.protected.clear(gfn);
                true
            };
            if self.hot.add(gfn, unprotect).is_err() {
                let _ = self.write_protect(gfn);
            }
            // Entries that are gone may still be in TLBs, and dirty there.
            if !planted(Mutant::TableUnflushed) {
                self.env.flush_all();
            }
            self.show_table(gfn, true);
        };
        let fill = |id| {
            if role.level() == 4 {
                self.fill_fixed(id, role);
            }
        };
        self.map.find_or_make(&self.pages, gfn, role, first, fill)
    }

    /// `gfn` has lost its last shadow page.
    pub(crate) fn no_longer_table(&self, gfn: Gfn) {
        self.tables.clear(gfn);
        self.blocks.remove_table(gfn);
        self.show_table(gfn, false);
        self.hot.remove(gfn);
        self.protected.clear(gfn);
        self.written.clear(gfn);
    }

    /// Shows the guest whether `gfn` is shadowed as a table: a write to its memory like any other.
    fn show_table(&self, gfn: Gfn, shadowed: bool) {
        self.env.show_table(gfn, shadowed);
        if let Some(frame) = self.env.bitmap_frame(gfn) {
            self.log.wrote(frame);
        }
    }

    /// Clears W wherever `gfn` is mapped; true if it was set somewhere, so that a flush is due. New
    /// entries get no W either: the caller has marked `gfn` already, as protected or as watched.
    #[must_use]
    pub(crate) fn write_protect(&self, gfn: Gfn) -> bool {
        let mut changed = false;
        self.rmap(gfn).lock(&self.chunks).for_each(|at| {
            let entry = &self.env.table(at.page()).0[at.index()];
            let now = Spte(entry.load(Acquire));
            if now.present() && now.has(W) && !planted(Mutant::ProtectNothing) {
                entry.fetch_and(!W, AcqRel);
                changed = true;
            }
        });
        changed
    }

    /// Removes every mapping of `gfn`, whose host frame changes or goes. The environment names the
    /// new one, or none, from before the call; [`GuestMemory::guest_frame`] knows the old one until
    /// it returns.
    pub fn zap_frame(&self, gfn: Gfn) {
        self.zap_leaves(self.rmap(gfn));
        self.zap_large(gfn);
        if !planted(Mutant::FrameUnflushed) {
            self.env.flush_all();
        }
    }
}
