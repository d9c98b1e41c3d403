//! INVPCID as the model executes it, and as flaws would have it.
//! May: nothing. Context: irq-off.

use super::{
    cache::{Cache, Page, Time},
    flaw::Flaw,
};
use crate::hw::cpu::Invpcid;
use alloc::{collections::BTreeSet, vec::Vec};
use core::cell::RefCell;
use pv_abi::{
    addr::{Gfn, Gva},
    ext::window,
};
use shadow_mmu::tlb::TagOps;
use switcher::layout;

/// A tag.
#[derive(Debug, Default)]
pub struct Tag {
    /// What it has cached.
    pub cache: Cache,
    /// The root that it was last used with.
    pub owner: Option<Gfn>,
    /// Pages that were cached writable and are page tables.
    pub tables: BTreeSet<Page>,
    /// The entries of [`own_pages`] that were cached.
    pub own: [Option<u64>; 4],
}

/// Pages of L1's own that it changes the entries of: vCPU `vcpu`'s PVCS, and some of those that the
/// shim writes all the time through its window.
pub const fn own_pages(vcpu: usize) -> [Page; 4] {
    let area = window::VCPU_AREA + vcpu as u64 * window::VCPU_STRIDE;
    [
        layout::pvcs(vcpu) >> 12,
        (area + window::area::DATA) >> 12,
        (area + window::area::NOTES) >> 12,
        (area + window::area::STACK_TOP - 1) >> 12,
    ]
}

/// All tags, and the clock.
#[derive(Debug, Default)]
pub struct Caches {
    tags: Vec<Tag>,
    now: Time,
    /// Translations that were dropped.
    pub dropped: u64,
}

impl Caches {
    /// Tag number `tag`.
    pub fn tag(&mut self, tag: u16) -> &mut Tag {
        let index = usize::from(tag);
        if self.tags.len() <= index {
            self.tags.resize_with(index + 1, Tag::default);
        }
        &mut self.tags[index]
    }

    /// What tag number `tag` has cached.
    pub fn cache(&mut self, tag: u16) -> &mut Cache {
        &mut self.tag(tag).cache
    }

    /// A moment after all others.
    pub const fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    /// Drops what `tag` has cached.
    pub fn clear(&mut self, tag: u16) {
        let now = self.tick();
        let tag = self.tag(tag);
        tag.own = [None; 4];
        let dropped = tag.cache.clear(now);
        self.dropped += dropped;
    }

    /// Drops what `tag` has cached of `page`.
    pub fn drop_page(&mut self, tag: u16, page: Page) {
        self.dropped += self.cache(tag).drop_page(page);
    }
}

/// What executes INVPCID for [`shadow_mmu::tlb::Tags`].
#[derive(Debug)]
pub struct ModelOps<'a> {
    /// The model's caches.
    pub caches: &'a RefCell<Caches>,
    /// The address space that is loaded.
    pub root: Gfn,
    /// The CPU has tags too.
    pub real: bool,
    /// What is wrong with it.
    pub flaw: Option<Flaw>,
}

impl TagOps for ModelOps<'_> {
    fn invalidate(&self, tag: u16) {
        let mut caches = self.caches.borrow_mut();
        let taken = caches.tag(tag).owner.is_some_and(|owner| owner != self.root);
        if !(taken && self.flaw == Some(Flaw::TakenTag)) {
            caches.clear(tag);
        }
        if self.real {
            Invpcid.invalidate(tag);
        }
    }

    fn invalidate_address(&self, tag: u16, gva: Gva) {
        let user = tag & 1 != 0;
        let gva = match self.flaw {
            Some(Flaw::Address) => return,
            Some(Flaw::UserAddress) if user => return,
            // `Tags` was shown an address of the lower half.
            Some(Flaw::UpperAddress) => Gva(gva.0 | UPPER),
            _ => gva,
        };
        self.caches.borrow_mut().drop_page(tag, gva.0 >> 12);
        if self.real {
            Invpcid.invalidate_address(tag, gva);
        }
    }

    fn invalidate_untagged(&self, _: Gva) {
        unreachable!("the model has tags");
    }
}

/// What an address of the upper half has set.
pub const UPPER: u64 = 0xffff_8000_0000_0000;
