//! Puts entries into shadow tables.
//! May: guest-memory. Context: run-loop. Input: guest-controlled.
//!
//! Each install follows rule I1: claim the absent entry with a token, read the guest's entry again,
//! exchange the token for the entry. It is the one entry that the shadow entry stands for: what is
//! above it is vouched for by the links above, each in the same way. A page that dies is first
//! marked dead, then emptied: its end, too, comes before the second step and is seen, or after it
//! and takes the token. A flush that runs in between takes the token away, and the fault starts
//! over. Checking after the entry is in would be too late: another CPU may use it after its own
//! flush has returned.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    mmu::Mmu,
    mutant::{Mutant, planted},
    page::{EntryRef, PageId, ShadowPage},
    primitive::{
        AtomicU64,
        Ordering::{AcqRel, Acquire},
    },
    pte::{D, Spte, W},
    refs::NoMemory,
    root::VcpuMmu,
    walk::Step,
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

/// Whether an install filled an absent entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    Yes,
    No,
}

/// A shadow entry and what it is to map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'m> {
    pub(crate) at: EntryRef,
    /// The table's record, and the entry in it.
    pub(crate) page: &'m ShadowPage,
    pub(crate) entry: &'m AtomicU64,
    /// The frame, or the first one of a large page.
    pub(crate) gfn: Gfn,
}

/// An entry that holds a token and is to become a link. The child does not go before
/// [`Mmu::link_claimed`].
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) at: EntryRef,
    pub(crate) child: PageId,
    token: Spte,
    link: Spte,
}

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// Entry `at`, to map `gfn`.
    #[inline(always)]
    pub(crate) fn target(&self, at: EntryRef, gfn: Gfn) -> Target<'_> {
        let (page, table) = (self.pages.get(at.page()), self.env.table(at.page()));
        Target { at, page, entry: &table.0[at.index()], gfn }
    }

    /// Puts a token into the absent entry `at`, which is to become `link` to `child` (rule I1), and
    /// names it among the child's parents.
    pub(crate) fn claim_link(
        &self,
        at: EntryRef,
        child: PageId,
        token: Spte,
        link: Spte,
    ) -> Result<Claim, Failed> {
        let entry = &self.env.table(at.page()).0[at.index()];
        self.pages.get(at.page()).mark_used(at.index());
        if entry.compare_exchange(0, token.0, AcqRel, Acquire).is_err() {
            return Err(Failed::Retry);
        }
        let page = self.pages.get(child);
        let added = {
            let mut parents = page.parents.lock(&self.link_chunks);
            if page.is_dead() && !planted(Mutant::DeadTableLinked) {
                Err(Failed::Retry)
            } else {
                parents.add(at).map_err(|NoMemory| Failed::NoMemory)
            }
        };
        if let Err(failed) = added {
            let _ = entry.compare_exchange(token.0, 0, AcqRel, Acquire);
            return Err(failed);
        }
        Ok(Claim { at, child, token, link })
    }

    /// Puts the link in place of its token if the guest's entry is `still_true`. Whoever has claimed it
    /// has seen to rule I3 in between.
    pub(crate) fn link_claimed(
        &self,
        claim: Claim,
        still_true: impl FnOnce() -> bool,
    ) -> Result<(), Failed> {
        let Claim { at, child, token, link } = claim;
        let entry = &self.env.table(at.page()).0[at.index()];
        let installed = (still_true() || planted(Mutant::LinkNotRechecked))
            && (!self.pages.get(at.page()).is_dead() || planted(Mutant::DeadTableLinks))
            && entry.compare_exchange(token.0, link.0, AcqRel, Acquire).is_ok();
        if installed {
            return Ok(());
        }
        let _ = entry.compare_exchange(token.0, 0, AcqRel, Acquire);
        self.pages.get(child).parents.lock(&self.link_chunks).remove(at);
        Err(Failed::Retry)
    }

    /// Brings leaf entry `target` to `value` (rules I1, I4).
    #[inline(always)]
    pub(crate) fn install(
        &self,
        vcpu: &mut VcpuMmu,
        target: Target<'_>,
        value: Spte,
        guest: Step<'_>,
    ) -> Result<Filled, Failed> {
        let now = Spte(target.entry.load(Acquire));
        if now != Spte::ABSENT {
            return self.change::<1>(vcpu, target, now, value, guest).map(|()| Filled::No);
        }
        let installed = self.install_absent::<1>(vcpu, target, value, || guest.still_true());
        if installed == Err(Failed::NoMemory) {
            return Err(Failed::TooManyMappings(target.gfn));
        }
        installed?;
        vcpu.stats.fills += 1;
        Ok(Filled::Yes)
    }

    /// Entry `target`, which is to become `value` and map a page at `LEVEL`, is there already, as
    /// `now`.
    #[cold]
    pub(crate) fn change<const LEVEL: u8>(
        &self,
        vcpu: &mut VcpuMmu,
        target: Target<'_>,
        now: Spte,
        value: Spte,
        guest: Step<'_>,
    ) -> Result<(), Failed> {
        let Target { at, gfn, .. } = target;
        if !now.present() {
            return Err(Failed::Retry);
        }
        if now.hpa() != value.hpa() && !planted(Mutant::Redirect) {
            self.zap(at, now);
            return Err(Failed::Retry);
        }
        // The same frame: only permissions change, what the hardware noted stays.
        let next = self.permitted::<LEVEL>(gfn, value).map(|value| Spte(value.0 | now.0 & D));
        if next == Some(now) {
            vcpu.stats.spurious += 1;
            return Ok(());
        }
        self.exchange::<LEVEL>(vcpu, target, now, value, guest)
    }

    /// Leaf entry `at`, which is `now`, gets the permissions of `value`, which the guest has just given
    /// it. If that fails, the fault comes after all.
    #[cold]
    pub(crate) fn give(
        &self,
        vcpu: &mut VcpuMmu,
        at: EntryRef,
        now: Spte,
        value: Spte,
        guest: Step<'_>,
    ) {
        let target = self.target(at, guest.entry.gfn());
        let _ = self.exchange::<1>(vcpu, target, now, value, guest);
    }

    /// Exchanges `now` for `value`, which maps the same frame with other permissions.
    #[inline(always)]
    fn exchange<const LEVEL: u8>(
        &self,
        vcpu: &mut VcpuMmu,
        target: Target<'_>,
        now: Spte,
        value: Spte,
        guest: Step<'_>,
    ) -> Result<(), Failed> {
        let Target { at, entry, gfn, .. } = target;
        let next = || self.permitted::<LEVEL>(gfn, value).map(|value| Spte(value.0 | now.0 & D));
        // The three steps again: the flush of a permission must find it, or prevent it. The lock
        // hides the token from those who look for W and D.
        let mappings = if LEVEL == 1 { self.rmap(gfn) } else { self.mappings(at, now) };
        let mut mappings = mappings.lock(&self.chunks);
        let token =
            if planted(Mutant::ChangeInPlace) { next().unwrap_or(now) } else { vcpu.token() };
        if entry.compare_exchange(now.0, token.0, AcqRel, Acquire).is_err() {
            return Err(Failed::Retry);
        }
        let installed = next().is_some_and(|next| {
            guest.still_true() && entry.compare_exchange(token.0, next.0, AcqRel, Acquire).is_ok()
        });
        if installed {
            return Ok(());
        }
        let _ = entry.compare_exchange(token.0, 0, AcqRel, Acquire);
        self.keep_dirty(gfn, now);
        mappings.remove(at);
        Err(Failed::Retry)
    }

    /// `value` as the state of `gfn` permits it: a frame that the log watches is not writable, nor
    /// is a protected table, and D starts out clear where somebody will look at it, on a page
    /// table.
    #[inline(always)]
    pub(crate) fn tame(&self, gfn: Gfn, value: Spte) -> Spte {
        if !value.has(W) {
            return value;
        }
        if self.log.watches(gfn) {
            return Spte(value.0 & !(W | D));
        }
        if !self.tables.get(gfn) {
            return value;
        }
        if planted(Mutant::ProtectedWritable) {
            return Spte(value.0 & !D);
        }
        if self.protected.get(gfn) { Spte(value.0 & !(W | D)) } else { Spte(value.0 & !D) }
    }

    /// `value`, which maps the page at `LEVEL` that starts at `gfn`, as it may be installed now;
    /// `None` if small entries are asked for meanwhile, or the host's frames are others.
    #[inline(always)]
    fn permitted<const LEVEL: u8>(&self, gfn: Gfn, value: Spte) -> Option<Spte> {
        if planted(Mutant::FrameNotAsked) && LEVEL == 1 {
            Some(self.tame(gfn, value))
        } else if LEVEL == 1 {
            (self.env.host_frame(gfn) == Some(value.hpa())).then(|| self.tame(gfn, value))
        } else {
            let same = self.env.host_block(gfn, LEVEL) == Some(value.hpa());
            (same && self.may_be_large(LEVEL, gfn)).then_some(value)
        }
    }

    /// Puts `value`, which maps a page at `LEVEL`, into the absent entry `target`. What forbids the
    /// entry, or a write through it, is looked at under the lock of the list that the entry is added
    /// to: whoever forbids it comes before and is seen then, or comes after and finds the entry.
    #[inline(always)]
    pub(crate) fn install_absent<const LEVEL: u8>(
        &self,
        vcpu: &mut VcpuMmu,
        target: Target<'_>,
        value: Spte,
        still_true: impl FnOnce() -> bool,
    ) -> Result<(), Failed> {
        let Target { at, page, entry, gfn } = target;
        page.mark_used(at.index());
        let token = if planted(Mutant::CheckLate) { value } else { vcpu.token() };
        if entry.compare_exchange(0, token.0, AcqRel, Acquire).is_err() {
            return Err(Failed::Retry);
        }
        let mappings = if LEVEL == 1 { self.rmap(gfn) } else { self.blocks.mappings(LEVEL, gfn) };
        let mut mappings = mappings.lock(&self.chunks);
        let result = match mappings.add(at) {
            Ok(()) => {
                if let Some(value) = self.permitted::<LEVEL>(gfn, value)
                    && (still_true() || planted(Mutant::LeafNotRechecked))
                    && (!page.is_dead() || planted(Mutant::DeadTableFilled))
                    && entry.compare_exchange(token.0, value.0, AcqRel, Acquire).is_ok()
                {
                    return Ok(());
                }
                mappings.remove(at);
                Err(Failed::Retry)
            }
            Err(NoMemory) => Err(Failed::NoMemory),
        };
        drop(mappings);
        let _ = entry.compare_exchange(token.0, 0, AcqRel, Acquire);
        result
    }

    /// Memory for references ran out: the newest other mapping of `gfn` makes room. It comes back
    /// by a fault when it is needed.
    pub(crate) fn drop_mapping(&self, gfn: Gfn) {
        let newest = self.rmap(gfn).lock(&self.chunks).newest();
        if let Some(at) = newest {
            let now = Spte(self.env.table(at.page()).0[at.index()].load(Acquire));
            self.zap(at, now);
            self.env.flush_all();
        }
    }
}
