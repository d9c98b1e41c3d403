//! Keeps the conventional MMU's entries true to the guest's.

use super::{Classic, RmapCell, Roots, Tracking};
use crate::host::Host;
use pv_abi::addr::{Gfn, Gva};
use shadow_mmu::{
    GuestMemory, TablePool, TlbOps,
    page::{EntryRef, Key, PageId, Role},
    pte::{A, D, GuestPte, NX, P, PS, Spte, U, W},
};
use std::sync::atomic::Ordering::{AcqRel, Acquire};

impl<R: RmapCell> Classic<R> {
    /// Flushes: every unsync table is protected again and compared.
    pub fn flush(&mut self, host: &Host) {
        let mut unsync = std::mem::take(&mut self.unsync);
        for gfn in unsync.drain(..) {
            if self.tracking(gfn) != Tracking::Unsync {
                continue;
            }
            self.set_tracking(gfn, Tracking::Protected);
            self.write_protect(host, gfn);
            for id in self.chain(gfn) {
                self.sync_page(host, id);
            }
        }
        if self.unsync.is_empty() {
            // Keeps its memory.
            self.unsync = unsync;
        }
    }

    /// True if a flush would find nothing to do.
    pub fn is_synced(&self) -> bool {
        self.unsync.is_empty()
    }

    /// Flushes one address.
    pub fn flush_address(&mut self, host: &Host, roots: Roots, gva: Gva) {
        for root in [roots.supervisor, roots.user] {
            let mut page = root;
            for level in [4, 3, 2, 1] {
                let index = gva.index(level);
                self.sync_entry(host, page, index);
                let entry = Spte(host.table(page).0[index].load(Acquire));
                if !entry.present() || level == 1 {
                    break;
                }
                page = host.id(entry.hpa());
            }
        }
    }

    /// Clears W wherever `gfn` is mapped, and flushes.
    pub(super) fn write_protect(&self, host: &Host, gfn: Gfn) {
        let changed = self.rmaps[gfn.0 as usize].with(|rmap| {
            let mut changed = false;
            for at in rmap.iter() {
                let entry = &host.table(at.page()).0[at.index()];
                changed |= entry.fetch_and(!(W | D), AcqRel) & W != 0;
            }
            changed
        });
        if changed {
            host.flush_all();
        }
    }

    /// Compares every entry of page `id` with the guest's.
    pub(super) fn sync_page(&mut self, host: &Host, id: PageId) {
        let table = host.table(id);
        let mut groups = self.page(id).used.load(Acquire);
        while groups != 0 {
            let group = groups.trailing_zeros() as usize;
            groups &= groups - 1;
            for index in 8 * group..8 * group + 8 {
                if table.0[index].load(Acquire) != 0 {
                    self.sync_entry(host, id, index);
                }
            }
        }
    }

    /// Brings entry `index` of page `id` back to what the guest's entry allows now.
    fn sync_entry(&mut self, host: &Host, id: PageId, index: usize) {
        let entry = &host.table(id).0[index];
        let now = Spte(entry.load(Acquire));
        if now == Spte::ABSENT {
            return;
        }
        let (key, at) = (self.page(id).key, EntryRef::new(id, index));
        let guest = GuestPte(host.load(key.gfn().gpa().offset(8 * index as u64)).unwrap_or(0));
        let level = key.role().level();
        let valid = guest.has(P | A)
            && (guest.has(U) || !key.role().contains(Role::USER_ONLY))
            && !self.paging.is_reserved(guest, level);
        if level > 1 {
            let child = self.page(host.id(now.hpa())).key;
            if !valid || !link_is_true(now, key, child, guest) {
                self.zap_link(host, at);
            }
            return;
        }
        if !valid || host.host_frame(guest.gfn()) != Some(now.hpa()) {
            self.zap_leaf(host, at);
            return;
        }
        let want = self.leaf_value(guest.gfn(), guest, now.hpa());
        if (want.0 ^ now.0) & (W | NX) != 0 {
            entry.fetch_or(want.0, AcqRel);
            entry.fetch_and(want.0 | D, AcqRel);
        }
    }
}

/// True if link `now`, in the table known as `key`, to the one known as `child`, still stands for
/// guest entry `guest`.
fn link_is_true(now: Spte, key: Key, child: Key, guest: GuestPte) -> bool {
    let private = guest.has(U) || !child.role().contains(Role::USER_ONLY);
    let small = !(key.role().level() < 4 && guest.has(PS));
    small && private && (now.0 ^ guest.0) & (W | NX) == 0 && guest.gfn() == child.gfn()
}
