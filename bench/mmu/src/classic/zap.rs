//! Takes entries and pages of the conventional MMU away.

use super::{Classic, RmapCell, Tracking};
use crate::host::Host;
use pv_abi::addr::Gfn;
use shadow_mmu::{
    GuestMemory, TablePool, TlbOps,
    page::{EntryRef, PageId},
    pte::Spte,
};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

impl<R: RmapCell> Classic<R> {
    /// Removes leaf entry `at`.
    pub(super) fn zap_leaf(&self, host: &Host, at: EntryRef) {
        let now = Spte(host.table(at.page()).0[at.index()].swap(0, AcqRel));
        if now.present() {
            let gfn = host.guest_frame(now.hpa());
            self.rmaps[gfn.0 as usize].with(|rmap| {
                if let Some(place) = rmap.iter().rposition(|&other| other == at) {
                    rmap.swap_remove(place);
                }
            });
        }
    }

    /// Removes link `at`, if there is one; a child without other links dies.
    pub(super) fn zap_link(&mut self, host: &Host, at: EntryRef) {
        let entry = &host.table(at.page()).0[at.index()];
        let now = Spte(entry.load(Acquire));
        if !now.present() {
            return;
        }
        entry.store(0, Relaxed);
        let child = host.id(now.hpa());
        let parents = &mut self.page_mut(child).parents;
        if let Some(place) = parents.iter().position(|&other| other == at) {
            parents.swap_remove(place);
        }
        host.flush_all();
        self.kill_if_unused(host, child);
    }

    /// Ends page `id` if nothing links or loads it. Its frame is free at once: everybody else is
    /// excluded, and the hardware was flushed.
    pub(super) fn kill_if_unused(&mut self, host: &Host, id: PageId) {
        let page = self.page_mut(id);
        if !page.live || page.loaded > 0 || !page.parents.is_empty() {
            return;
        }
        page.live = false;
        let (gfn, level) = (page.key.gfn(), page.key.role().level());
        if let Some(chain) = self.map.get_mut(&gfn.0) {
            chain.retain(|other| *other != id);
            if chain.is_empty() {
                self.map.remove(&gfn.0);
                self.forget(gfn);
            }
        }
        let mut groups = self.page_mut(id).used.swap(0, Relaxed);
        while groups != 0 {
            let group = groups.trailing_zeros() as usize;
            groups &= groups - 1;
            for index in 8 * group..8 * group + 8 {
                if host.table(id).0[index].load(Acquire) == 0 {
                    continue;
                }
                let at = EntryRef::new(id, index);
                if level == 1 {
                    self.zap_leaf(host, at);
                } else {
                    self.zap_link(host, at);
                }
            }
        }
        host.flush_all();
        self.free.push(id);
    }

    /// `gfn` is shadowed no longer.
    fn forget(&mut self, gfn: Gfn) {
        if self.tracking(gfn) == Tracking::Unsync {
            self.unsync.retain(|&other| other != gfn);
        }
        self.set_tracking(gfn, Tracking::None);
    }

    /// Removes every mapping of `gfn`.
    pub fn zap_frame(&self, host: &Host, gfn: Gfn) {
        while let Some(at) = self.rmaps[gfn.0 as usize].with(|rmap| rmap.last().copied()) {
            self.zap_leaf(host, at);
        }
        host.flush_all();
    }
}
