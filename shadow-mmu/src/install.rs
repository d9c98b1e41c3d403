//! Puts entries into shadow tables.
//! May: guest-memory. Context: run-loop. Input: guest-controlled.
//!
//! Each install follows rule I1: claim the absent entry with a token, read the guest's entries
//! again, exchange the token for the entry. A flush that runs in between takes the token away, and
//! the fault starts over. Checking after the entry is in would be too late: another CPU may use it
//! after its own flush has returned.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    mmu::Mmu,
    page::{EntryRef, PageId},
    primitive::Ordering::{AcqRel, Acquire},
    pte::{D, Spte, W},
    refs::NoMemory,
    root::VcpuMmu,
    walk::Walk,
};
use pv_abi::addr::Gfn;

/// Why an install did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// Something changed: walk again.
    Retry,
    /// Pages ran out, or references to links.
    NoMemory,
    /// References ran out, and the frame has several mappings.
    TooManyMappings(Gfn),
}

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// Puts `link` to `child` into the absent entry `at` (rules I1, I3).
    pub(crate) fn link_child(
        &self,
        at: EntryRef,
        child: PageId,
        token: Spte,
        link: Spte,
        still_true: impl FnOnce() -> bool,
    ) -> Result<(), Failed> {
        let entry = &self.env.table(at.page()).0[at.index()];
        self.pages.get(at.page()).mark_used(at.index());
        if entry.compare_exchange(0, token.0, AcqRel, Acquire).is_err() {
            return Err(Failed::Retry);
        }
        let page = self.pages.get(child);
        let added = {
            let mut parents = page.parents.lock(&self.chunks);
            if page.is_dead() {
                Err(Failed::Retry)
            } else {
                parents.add(at).map_err(|NoMemory| Failed::NoMemory)
            }
        };
        let installed = added.is_ok()
            && still_true()
            && entry.compare_exchange(token.0, link.0, AcqRel, Acquire).is_ok();
        if installed {
            return Ok(());
        }
        let _ = entry.compare_exchange(token.0, 0, AcqRel, Acquire);
        if added.is_ok() {
            page.parents.lock(&self.chunks).remove(at);
        }
        Err(added.err().unwrap_or(Failed::Retry))
    }

    /// Brings leaf entry `at`, which maps `gfn`, to `value` (rules I1, I4).
    #[inline(always)]
    pub(crate) fn install(
        &self,
        vcpu: &mut VcpuMmu,
        at: EntryRef,
        gfn: Gfn,
        value: Spte,
        walk: &Walk<'_>,
    ) -> Result<(), Failed> {
        let now = Spte(self.env.table(at.page()).0[at.index()].load(Acquire));
        if now == Spte::ABSENT {
            self.install_absent(vcpu, at, gfn, value, || walk.still_true())?;
            vcpu.stats.fills += 1;
            return Ok(());
        }
        self.change(vcpu, at, now, self.tame(gfn, value), walk)
    }

    /// Entry `at` is there already, as `now`.
    #[cold]
    fn change(
        &self,
        vcpu: &mut VcpuMmu,
        at: EntryRef,
        now: Spte,
        value: Spte,
        walk: &Walk<'_>,
    ) -> Result<(), Failed> {
        if !now.present() {
            return Err(Failed::Retry);
        }
        if now.hpa() != value.hpa() {
            self.zap_leaf(at, now);
            return Err(Failed::Retry);
        }
        // The same frame: permissions may change in place, what the hardware noted stays.
        let next = Spte(value.0 | now.0 & D);
        if next == now {
            vcpu.stats.spurious += 1;
            return Ok(());
        }
        let entry = &self.env.table(at.page()).0[at.index()];
        if !walk.still_true() || entry.compare_exchange(now.0, next.0, AcqRel, Acquire).is_err() {
            return Err(Failed::Retry);
        }
        Ok(())
    }

    /// `value` as the state of `gfn` permits it: a protected table is not writable, and D starts
    /// out clear where somebody will look at it, on a page table.
    #[inline(always)]
    pub(crate) fn tame(&self, gfn: Gfn, value: Spte) -> Spte {
        if !self.tables.get(gfn) || !value.has(W) {
            return value;
        }
        if self.protected.get(gfn) { Spte(value.0 & !(W | D)) } else { Spte(value.0 & !D) }
    }

    /// Puts `value`, which maps `gfn`, into the absent leaf entry `at`.
    #[inline(always)]
    pub(crate) fn install_absent(
        &self,
        vcpu: &mut VcpuMmu,
        at: EntryRef,
        gfn: Gfn,
        value: Spte,
        still_true: impl FnOnce() -> bool,
    ) -> Result<(), Failed> {
        let entry = &self.env.table(at.page()).0[at.index()];
        self.pages.get(at.page()).mark_used(at.index());
        let token = vcpu.token();
        if entry.compare_exchange(0, token.0, AcqRel, Acquire).is_err() {
            return Err(Failed::Retry);
        }
        let mut rmap = self.rmap(gfn).lock(&self.chunks);
        let result = match rmap.add(at) {
            Ok(()) => {
                // Under the lock: whoever protects the frame comes before us and is seen here, or
                // after us and finds the entry.
                let value = self.tame(gfn, value);
                let installed = still_true()
                    && entry.compare_exchange(token.0, value.0, AcqRel, Acquire).is_ok();
                if installed {
                    return Ok(());
                }
                rmap.remove(at);
                Err(Failed::Retry)
            }
            Err(NoMemory) => Err(Failed::TooManyMappings(gfn)),
        };
        drop(rmap);
        let _ = entry.compare_exchange(token.0, 0, AcqRel, Acquire);
        result
    }

    /// Memory for references ran out: the newest other mapping of `gfn` makes room. It comes back
    /// by a fault when it is needed.
    pub(crate) fn drop_mapping(&self, gfn: Gfn) {
        let newest = self.rmap(gfn).lock(&self.chunks).newest();
        if let Some(at) = newest {
            let now = Spte(self.env.table(at.page()).0[at.index()].load(Acquire));
            self.zap_leaf(at, now);
            self.env.flush_all();
        }
    }
}
