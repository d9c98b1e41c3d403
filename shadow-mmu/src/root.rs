//! Address spaces: the pair of shadow roots behind a guest CR3, loading, pinning, dropping.
//! May: guest-memory, take-frame. Context: run-loop. Input: guest-controlled CR3 values.
//!
//! One guest root table has two shadow roots. The *supervisor* root maps everything; the *user*
//! root maps what user mode may use. In the lower half both link the same USER_ONLY tables, so a
//! user page faults once for both modes; where a PML4 slot of the lower half holds supervisor
//! pages, the supervisor root has a tree of its own for that slot. Under SMEP nothing is shared.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    fault::Access,
    map::Origin,
    mmu::{Mmu, Stats},
    mutant::{Mutant, planted},
    page::{Key, PageId, Role},
    primitive::{Ordering::Relaxed, spin_loop},
    pte::Spte,
};
use pv_abi::addr::{Gfn, Hpa};

/// The shadow roots of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roots {
    /// The guest's root table.
    pub gfn: Gfn,
    pub(crate) smod: PageId,
    pub(crate) umod: PageId,
}

impl Roots {
    /// The root that `access` goes through.
    #[inline(always)]
    pub(crate) const fn of(self, access: Access) -> PageId {
        if access.contains(Access::USER) { self.umod } else { self.smod }
    }
}

/// Roots that a vCPU remembers, so that switching between a few processes finds them at once.
const RECENT: usize = 8;

/// A vCPU's side of the MMU.
#[derive(Debug)]
pub struct VcpuMmu {
    /// Number of the vCPU in its VM.
    pub index: usize,
    pub(crate) roots: Option<Roots>,
    recent: [Option<Roots>; RECENT],
    token: Spte,
    /// What happened so far.
    pub stats: Stats,
}

/// Why a root could not be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootError {
    /// The frame is not RAM of the VM.
    NotRam,
    /// No shadow page is free: [`Mmu::shrink`] and try again.
    NoMemory,
}

impl VcpuMmu {
    /// vCPU `index`, with no root loaded.
    #[must_use]
    pub fn new(index: usize) -> Self {
        Self {
            index,
            roots: None,
            recent: [None; RECENT],
            token: Spte::token(index),
            stats: Stats::default(),
        }
    }

    /// The roots that are loaded.
    #[must_use]
    pub const fn roots(&self) -> Option<Roots> {
        self.roots
    }

    /// Where the roots of `gfn` are remembered.
    fn recent(&mut self, gfn: Gfn) -> &mut Option<Roots> {
        &mut self.recent[gfn.0 as usize % RECENT]
    }

    /// A token no other install in flight has.
    pub(crate) fn token(&mut self) -> Spte {
        self.token = self.token.next_token();
        self.token
    }
}

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    fn root_role(&self, user: bool) -> Role {
        let flags = match (user, self.config.paging.smep) {
            (true, _) => Role::USER_ONLY,
            (false, true) => Role::USER_PATH,
            (false, false) => Role::empty(),
        };
        Role::at(4, flags)
    }

    /// Host addresses of both roots: (supervisor, user).
    pub fn root_addresses(&self, roots: Roots) -> (Hpa, Hpa) {
        (self.env.hpa(roots.smod), self.env.hpa(roots.umod))
    }

    /// Loads the address space whose root table is `gfn`, as a CR3 write does.
    ///
    /// With `flush` (no PCID, or no no-flush bit) every hot table that was written is synced, whatever
    /// its half: more than rule F1 asks for. The caller flushes the hardware.
    ///
    /// # Errors
    /// [`RootError`]; the old root stays loaded.
    #[inline(always)]
    pub fn load_root(&self, vcpu: &mut VcpuMmu, gfn: Gfn, flush: bool) -> Result<Roots, RootError> {
        let (roots, previous) = self.exchange_root(vcpu, gfn, flush)?;
        if let Some(previous) = previous {
            self.give_up(previous);
        }
        Ok(roots)
    }

    /// The same for a CPU that is on the old root, or may be: the second result, which stays alive until it
    /// is given up.
    ///
    /// # Errors
    /// As there.
    #[inline(always)]
    pub fn exchange_root(
        &self,
        vcpu: &mut VcpuMmu,
        gfn: Gfn,
        flush: bool,
    ) -> Result<(Roots, Option<Roots>), RootError> {
        if vcpu.roots.is_none() {
            // From here on it uses tables.
            self.entering(vcpu.index);
        }
        if !planted(Mutant::LoadSkipsHot) && flush && !self.hot.is_empty() {
            self.sync_hot(vcpu);
        }
        if let Some(current) = vcpu.roots
            && current.gfn != gfn
            && let Some(roots) = self.recall(vcpu, gfn)
        {
            vcpu.roots = Some(roots);
            // As below.
            self.sync_unpinned(roots);
            return Ok((roots, Some(current)));
        }
        self.load_other_root(vcpu, gfn, flush)
    }

    /// The CPU is on `previous` no more ([`Self::exchange_root`]).
    #[inline(always)]
    pub fn give_up(&self, previous: Roots) {
        self.unload(previous);
        self.reclaim();
    }

    /// The rest of [`Self::exchange_root`]: the root that is loaded, or one that was not lately.
    #[cold]
    fn load_other_root(
        &self,
        vcpu: &mut VcpuMmu,
        gfn: Gfn,
        flush: bool,
    ) -> Result<(Roots, Option<Roots>), RootError> {
        if let Some(current) = vcpu.roots.filter(|roots| roots.gfn == gfn) {
            if flush {
                self.sync_unpinned(current);
            }
            return Ok((current, None));
        }
        let (roots, origin) = self.find_roots(gfn)?;
        *vcpu.recent(gfn) = Some(roots);
        let previous = vcpu.roots.replace(roots);
        if origin == Origin::Made {
            vcpu.stats.roots += 1;
            if let Some(previous) = previous {
                self.copy_upper_half(vcpu, previous.smod, roots);
            }
        }
        // With or without flush, for a flush of all spaces has not looked at this one; and even
        // where the supervisor root was made, the user root may have been found.
        self.sync_unpinned(roots);
        if previous.is_none() {
            self.reclaim();
        }
        Ok((roots, previous))
    }

    /// The roots for `gfn` if this vCPU had them loaded lately and they still live; loaded.
    #[inline]
    fn recall(&self, vcpu: &mut VcpuMmu, gfn: Gfn) -> Option<Roots> {
        let roots = (*vcpu.recent(gfn)).filter(|roots| roots.gfn == gfn)?;
        if !self.hold(roots.smod, gfn, false) {
            return None;
        }
        if !self.hold(roots.umod, gfn, true) {
            self.let_go(roots.smod);
            return None;
        }
        Some(roots)
    }

    /// Loads root `id` if it still stands for `gfn`.
    #[inline]
    fn hold(&self, id: PageId, gfn: Gfn, user: bool) -> bool {
        let page = self.pages.get(id);
        let key = Key::new(gfn, self.root_role(user));
        let other = page.key() != key && !planted(Mutant::RecallUnchecked);
        if other || !page.load() {
            return false;
        }
        // It may have been reused in between.
        let same = planted(Mutant::RecallUnchecked) || page.key() == key;
        if !same {
            self.let_go(id);
        }
        same
    }

    /// The roots for `gfn`, made if there are none; loaded.
    fn find_roots(&self, gfn: Gfn) -> Result<(Roots, Origin), RootError> {
        self.env.host_frame(gfn).ok_or(RootError::NotRam)?;
        let (smod, origin) = self.find_root(gfn, false)?;
        match self.find_root(gfn, true) {
            Ok((umod, _)) => Ok((Roots { gfn, smod, umod }, origin)),
            Err(error) => {
                self.let_go(smod);
                self.kill_if_unused(smod);
                Err(error)
            }
        }
    }

    /// Unloads the vCPU's root for good: the vCPU ends.
    pub fn unload_root(&self, vcpu: &mut VcpuMmu) {
        if let Some(roots) = vcpu.roots.take() {
            self.unload(roots);
        }
    }

    /// Calls `visit` with the table of every live root and whether it is a user-mode one.
    pub fn for_each_root(&self, mut visit: impl FnMut(Hpa, bool)) {
        for id in 0..self.pages.capacity() {
            let page = self.pages.get(id);
            if !page.is_dead() && page.role().level() == 4 {
                visit(self.env.hpa(id), page.role().contains(Role::USER_ONLY));
            }
        }
    }

    fn find_root(&self, gfn: Gfn, user: bool) -> Result<(PageId, Origin), RootError> {
        let role = self.root_role(user);
        loop {
            let found = self.find_or_make(gfn, role).ok_or(RootError::NoMemory)?;
            if self.hold(found.0, gfn, user) {
                return Ok(found);
            }
            // It died since it was found, and leaves the map in a moment.
            spin_loop();
        }
    }

    /// Puts L1's own entries into a new root.
    pub(crate) fn fill_fixed(&self, id: PageId, role: Role) {
        for &(slot, entry, in_user_root) in &self.config.fixed {
            if in_user_root || !role.contains(Role::USER_ONLY) {
                self.pages.get(id).mark_used(slot);
                self.env.table(id).0[slot].store(entry, Relaxed);
            }
        }
    }

    #[inline(always)]
    fn unload(&self, roots: Roots) {
        for id in [roots.smod, roots.umod] {
            self.pages.get(id).unload();
        }
        self.drop_unpinned(roots.gfn, &[roots.smod, roots.umod]);
    }

    fn let_go(&self, id: PageId) {
        let page = self.pages.get(id);
        let gfn = page.gfn();
        page.unload();
        self.drop_unpinned(gfn, &[id]);
    }

    /// A root that is loaded nowhere is kept if the guest announces its stores, thrown away if not
    /// (rule N4). In unsync mode its tables are tracked like all others, so it is kept.
    #[inline]
    fn drop_unpinned(&self, gfn: Gfn, ids: &[PageId]) {
        if self.notes_mode() && !self.pins.get(gfn) {
            ids.iter().for_each(|&id| {
                self.kill_if_unused(id);
            });
        }
    }

    /// Notes mode: the root in `gfn` is pinned; its shadow is kept while it is not loaded.
    ///
    /// # Errors
    /// [`RootError::NotRam`].
    #[inline]
    pub fn pin_root(&self, gfn: Gfn) -> Result<(), RootError> {
        if self.pins.get(gfn) { Ok(()) } else { self.pin_new_root(gfn) }
    }

    #[cold]
    fn pin_new_root(&self, gfn: Gfn) -> Result<(), RootError> {
        self.env.host_frame(gfn).ok_or(RootError::NotRam)?;
        if !planted(Mutant::PinKeeps) {
            // Where it is loaded already, stores that nobody announced may have changed it (N4).
            self.clear_lower_half(gfn);
        }
        self.pins.set(gfn);
        Ok(())
    }

    /// Notes mode: forgets the root in `gfn` and every table only it reaches (rule N2). Where it
    /// is loaded, its lower half goes at once and the rest when it is unloaded.
    pub fn unpin_root(&self, gfn: Gfn) {
        self.pins.clear(gfn);
        for id in self.map.chain(&self.pages, gfn) {
            let page = self.pages.get(id);
            if page.role().level() != 4 {
                continue;
            }
            if page.loaded() == 0 {
                self.kill_if_unused(id);
            } else if !planted(Mutant::UnpinKeeps) {
                self.clear_entries(id, 0..256);
            }
        }
    }

    fn clear_lower_half(&self, gfn: Gfn) {
        for id in self.map.chain(&self.pages, gfn) {
            if self.pages.get(id).role().level() == 4 {
                self.clear_entries(id, 0..256);
            }
        }
    }
}
