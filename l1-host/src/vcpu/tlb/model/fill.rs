//! Caches what the hardware could: more than the guest has used, nothing that the tables lack.
//! May: guest-memory. Context: run-loop. Input: guest-controlled.

use super::{
    cache::{Leaf, Link, Page},
    judge::{Broken, Rule},
    tags::Tag,
    tlb::Tlb,
    walk::{self, Shadow, USED},
};
use crate::vm::Vm;
use alloc::vec::Vec;
use pv_abi::addr::{Gva, Hpa};
use shadow_mmu::{
    GuestMemory,
    inspect::Watch,
    pte::{ADDRESS, P, U, W},
};

/// A tag that is loaded, with its shadow root.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The tag.
    pub tag: u16,
    /// The root.
    pub root: Hpa,
    /// It is user mode's.
    pub user: bool,
}

impl Tlb {
    /// Caches the translation of `page` if there is one and none is cached; the cached one.
    ///
    /// As in hardware, a cached link is followed wherever it leads, and the levels above are not
    /// looked at.
    pub(super) fn fill(
        &mut self,
        vm: &Vm,
        view: View,
        page: Page,
    ) -> Result<Option<(Page, Leaf)>, Broken> {
        if !vm.mmu.is_legal(Gva(page << 12)) {
            return Ok(None);
        }
        let cache = self.caches.get_mut().cache(view.tag);
        let cached = cache.leaf(page);
        if cached.is_some() {
            return Ok(cached);
        }
        let Some(found) = self.walk(vm, view, page)? else {
            let absent = walk::shadow(view.root, 4, walk::UNLIMITED, page, P | U).is_none();
            if absent {
                self.caches.get_mut().cache(view.tag).forget(page);
            }
            return Ok(None);
        };
        let guest = walk::guest(vm.env(), vm.mmu.paging(), self.root, page);
        let guest_level = guest.map_or(1, |guest| guest.level);
        self.large |= guest_level > 1;
        let caches = self.caches.get_mut();
        let time = caches.tick();
        let cache = caches.cache(view.tag);
        if cache.len() >= self.most {
            let mut oldest = Vec::new();
            cache.next(1, &mut oldest);
            oldest.into_iter().for_each(|page| cache.forget(page));
            self.counts.forgotten += 1;
        }
        cache.insert(page, Leaf { entry: found.entry, level: found.level, guest_level, time });
        self.counts.cached += 1;
        let cached = cache.leaf(page);
        let gfn = vm.env().guest_frame(Hpa(found.entry & ADDRESS));
        if found.level == 1 && found.entry & W != 0 && vm.mmu.watch(gfn) != Watch::No {
            caches.tag(view.tag).tables.insert(page);
        }
        Ok(cached)
    }

    /// Caches the pages that are page tables before others: what the guest writes to them must not
    /// go unnoticed.
    pub(super) fn fill_tables(&mut self, vm: &Vm, view: View) -> Result<(), Broken> {
        let Tag { cache, tables, .. } = self.caches.get_mut().tag(view.tag);
        let missing = tables.iter().copied().filter(|&page| cache.leaf(page).is_none());
        for page in missing.collect::<Vec<_>>() {
            let watched = self.fill(vm, view, page)?.is_some_and(|(start, leaf)| {
                vm.mmu.watch(vm.env().guest_frame(leaf.frame(start, page))) != Watch::No
            });
            if !watched {
                self.caches.get_mut().tag(view.tag).tables.remove(&page);
            }
        }
        Ok(())
    }

    /// Walks as the hardware does: below a cached link, or from the root.
    fn walk(&mut self, vm: &Vm, view: View, page: Page) -> Result<Option<Shadow>, Broken> {
        let dead = |table: Hpa| Broken {
            rule: Rule::I4,
            what: "goes through a table that is no more",
            page,
            view,
            cached: None,
            link: Some(table),
        };
        let caches = self.caches.get_mut();
        if let Some(link) = caches.cache(view.tag).link(page) {
            if vm.mmu.key_of(link.table) != Some(link.key) {
                return Err(dead(link.table));
            }
            return Ok(walk::shadow(link.table, 1, link.limits, page, USED));
        }
        let Some(found) = walk::shadow(view.root, 4, walk::UNLIMITED, page, USED) else {
            return Ok(None);
        };
        if found.level == 1 {
            let table = found.at.0;
            let key = vm.mmu.key_of(table).ok_or_else(|| dead(table))?;
            let time = caches.tick();
            let link = Link { table, key, limits: found.limits, time };
            caches.cache(view.tag).insert_link(page, link);
        }
        Ok(Some(found))
    }
}
