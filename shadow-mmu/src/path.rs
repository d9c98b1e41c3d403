//! Finds the way of a fault through the shadow tables.
//! May: guest-memory. Context: run-loop. Input: guest-controlled.
//!
//! A link that is in place is a cached translation of the guest's entry above it: what it says
//! holds until the next flush, as in a CPU's paging-structure caches. So a fault whose tables are
//! linked needs one guest entry, the last. A refusal is believed only where notes keep the links
//! true, or where the guest's upper entries say the same now: a fault empties those caches of a CPU,
//! and a guest that has changed an upper entry may rely on that. Everything else is left to the full
//! walk.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    fault::Access,
    install::Target,
    mmu::Mmu,
    mutant::{Mutant, planted},
    page::{EntryRef, Role},
    primitive::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
    pte::{A, D, GuestPte, Spte, U},
    root::{Roots, VcpuMmu},
    walk::{Denied, Step},
};
use pv_abi::addr::{Gfn, Gva, Hpa};

/// A leaf entry of the guest, and where its shadow goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf<'m> {
    pub(crate) guest: Step<'m>,
    pub(crate) target: Target<'m>,
    /// Role of the target's table.
    pub(crate) role: Role,
    /// The host's frame.
    pub(crate) hpa: Hpa,
    /// The guest's next entry, if it is in the same table and that is at hand.
    pub(crate) next: Option<&'m AtomicU64>,
}

/// What the shadow tables say of an access.
#[derive(Debug)]
pub(crate) enum Path<'m> {
    /// The guest permits it.
    Leaf(Leaf<'m>),
    /// It does not.
    Denied(Denied),
    /// Links are missing, or may not be the guest's any more, or entries change right now.
    Unknown,
}

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// Goes down from the root to the leaf entry for `gva`; sets the guest's A, and D for a write,
    /// if `access` is permitted (rule I5).
    #[inline(always)]
    pub(crate) fn path(&self, roots: Roots, gva: Gva, access: Access) -> Path<'_> {
        let root = self.env.table(roots.of(access));
        let upper = Spte(root.0[gva.index(4)].load(Acquire));
        let Some(middle) = self.follow::<3>(upper, gva) else { return Path::Unknown };
        let Some(lower) = self.follow::<2>(middle, gva) else { return Path::Unknown };
        if !lower.is_link() {
            return Path::Unknown;
        }
        let id = self.env.id(lower.hpa());
        let page = self.pages.get(id);
        let (key, index) = (page.key(), gva.index(1));
        let role = key.role();
        // A large page taken apart has no leaf table. What SMEP forbids depends on U of the guest's
        // upper entries.
        let smep = access.contains(Access::FETCH) && self.config.paging.smep;
        if role.contains(Role::DIRECT) || smep {
            return Path::Unknown;
        }
        let Some(table) = self.env.table_at(key.gfn()) else { return Path::Unknown };
        let slot = &table.0[index];
        let entry = GuestPte(slot.load(Acquire));
        if entry.present() && self.config.paging.is_reserved(entry, 1) {
            return Path::Unknown;
        }
        let every = upper.0 & middle.0 & lower.0 & entry.0;
        let any = upper.0 | middle.0 | lower.0 | entry.0;
        if every & access.needed() != access.needed() || any & access.never() != 0 {
            // The root may have been pinned since its entry was read: what was linked before that went
            // first, and would not be there any more.
            let linked = || {
                let again = Spte(root.0[gva.index(4)].load(Acquire));
                again.is_link() && again.hpa() == upper.hpa() || planted(Mutant::RefusalOutdated)
            };
            let sure = planted(Mutant::RefusalBelieved)
                || self.links_are_true(roots) && linked()
                || self.refuses(roots, gva, access, key.gfn(), entry);
            return match (sure, entry.present()) {
                (false, _) => Path::Unknown,
                (true, false) => Path::Denied(Denied::NOT_PRESENT),
                (true, true) => Path::Denied(Denied::PROTECTION),
            };
        }
        // A supervisor page is not for a USER_ONLY table.
        if !planted(Mutant::KernelInUser) && role.contains(Role::USER_ONLY) && !entry.has(U) {
            return Path::Unknown;
        }
        let gfn = entry.gfn();
        let Some(hpa) = self.env.host_frame(gfn) else { return Path::Unknown };
        let accessed = if planted(Mutant::LostA) { 0 } else { A };
        let marked = GuestPte(entry.0 | accessed | access.dirties());
        if marked != entry {
            if planted(Mutant::BlindMark) {
                slot.fetch_or(marked.0 & (A | D), AcqRel);
            } else if slot.compare_exchange(entry.0, marked.0, AcqRel, Relaxed).is_err() {
                return Path::Unknown;
            }
            if !planted(Mutant::LogUntold) {
                self.log.wrote(key.gfn());
            }
        }
        let entry = &self.env.linked(lower.hpa()).0[index];
        let target = Target { at: EntryRef::new(id, index), page, entry, gfn };
        Path::Leaf(Leaf {
            guest: Step { slot, entry: marked },
            target,
            role,
            hpa,
            next: table.0.get(index + 1),
        })
    }

    /// True if the guest's last-level table for user mode at `gva`, as the shadow tables know it, maps
    /// nothing there.
    #[must_use]
    #[inline]
    pub fn is_absent(&self, vcpu: &VcpuMmu, gva: Gva) -> bool {
        let look = || {
            let root = self.env.table(vcpu.roots.filter(|_| self.is_legal(gva))?.umod);
            let upper = Spte(root.0[gva.index(4)].load(Acquire));
            let lower = self.follow::<2>(self.follow::<3>(upper, gva)?, gva)?;
            let table = self.env.table_at(self.pages.get(self.linked_table(lower)?).gfn())?;
            Some(!GuestPte(table.0[gva.index(1)].load(Relaxed)).present())
        };
        look().unwrap_or(false)
    }

    /// True if the guest's own entries lead to the last-level `table` now, by small pages, and refuse
    /// `access` with `entry` there: what a walk would find, without a record of the way.
    #[inline(always)]
    fn refuses(&self, roots: Roots, gva: Gva, access: Access, table: Gfn, entry: GuestPte) -> bool {
        let upper = |at: Gfn, index: usize| {
            let entry = GuestPte(self.env.table_at(at)?.0[index].load(Acquire));
            self.config.paging.is_link(entry).then_some(entry)
        };
        let Some(first) = upper(roots.gfn, gva.index(4)) else { return false };
        let Some(second) = upper(first.gfn(), gva.index(3)) else { return false };
        let Some(third) = upper(second.gfn(), gva.index(2)) else { return false };
        let every = first.0 & second.0 & third.0 & entry.0;
        let any = first.0 | second.0 | third.0 | entry.0;
        let refused = every & access.needed() != access.needed() || any & access.never() != 0;
        third.gfn() == table && refused
    }

    /// The entry for `gva` in the table at `LEVEL` that `above` links, if it links one.
    #[inline(always)]
    pub(crate) fn follow<const LEVEL: u8>(&self, above: Spte, gva: Gva) -> Option<Spte> {
        above
            .is_link()
            .then(|| Spte(self.env.linked(above.hpa()).0[gva.index(LEVEL)].load(Acquire)))
    }

    /// True if what is linked under `roots` is what the guest's entries say now, as far as this
    /// vCPU can know: its own notes are drained, and others' stores are not flushed yet (N1, N4).
    #[inline(always)]
    pub(crate) fn links_are_true(&self, roots: Roots) -> bool {
        self.notes_mode() && self.pins.get(roots.gfn)
    }
}
