//! Tells a model of the TLB, and a check of the dirty log, what the tables themselves do not say.
//! May: nothing. Context: any; for checks, not for mechanisms.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    mmu::Mmu,
    page::Key,
    primitive::Ordering::Acquire,
    pte::{Spte, W},
    walk::Paging,
};
use pv_abi::addr::{Gfn, Hpa};

/// How writes to a guest frame are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Not at all: it is no table.
    No,
    /// By the D bits of the entries that map it.
    DirtyBits,
    /// It is known to be written, and compared at the next flush whatever the D bits say.
    Written,
    /// By a fault: nothing may map it writable.
    Protected,
}

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// What the shadow table at `table` stands for; `None` if it is dead.
    pub fn key_of(&self, table: Hpa) -> Option<Key> {
        let page = self.pages.get(self.env.id(table));
        (!page.is_dead()).then(|| page.key())
    }

    /// How writes to `gfn` are noticed.
    pub fn watch(&self, gfn: Gfn) -> Watch {
        if !self.tables.get(gfn) {
            Watch::No
        } else if self.protected.get(gfn) {
            Watch::Protected
        } else if self.written.get(gfn) {
            Watch::Written
        } else {
            Watch::DirtyBits
        }
    }

    /// True if the dirty log is on and has not been told of a write to `gfn` since it was taken.
    pub fn log_watches(&self, gfn: Gfn) -> bool {
        self.log.watches(gfn)
    }

    /// True if a small entry maps `gfn` writable.
    pub fn is_mapped_writable(&self, gfn: Gfn) -> bool {
        let mut writable = false;
        self.rmap(gfn).lock(&self.chunks).for_each(|at| {
            let entry = Spte(self.env.table(at.page()).0[at.index()].load(Acquire));
            writable |= entry.present() && entry.has(W);
        });
        writable
    }

    /// True if one entry may map the page at `level` that holds `gfn`.
    pub fn allows_large(&self, level: u8, gfn: Gfn) -> bool {
        self.may_be_large(level, gfn)
    }

    /// The guest's rules of paging.
    pub fn paging(&self) -> Paging {
        self.config.paging
    }
}
