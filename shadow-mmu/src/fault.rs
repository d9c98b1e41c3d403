//! Resolves a guest page fault against the shadow tables.
//! May: guest-memory, take-frame. Context: run-loop. Input: guest-controlled.
//!
//! The way of a fault: walk the guest's tables; find or link the shadow table of each level;
//! install the leaf; look at its neighbours. Each install follows rule I1: claim the absent entry
//! with a token, read the guest's entries again, exchange the token for the entry. A flush that
//! runs in between takes the token away, and the fault starts over.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    map::Origin,
    mmu::Mmu,
    page::{EntryRef, PageId, Role},
    primitive::Ordering::{AcqRel, Acquire},
    pte::{A, D, GuestPte, NX, P, Spte, U, W},
    refs::NoMemory,
    root::VcpuMmu,
    walk::{self, LEVELS, Walk},
};
use pv_abi::{
    addr::{Gfn, Gpa, Gva, Hpa},
    event::pf,
};

/// What the guest tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// It was a write.
    pub write: bool,
    /// It was an instruction fetch.
    pub fetch: bool,
    /// The guest was in user mode.
    pub user: bool,
}

impl Access {
    /// From the hardware's error code and the guest's mode. The code's own U bit says nothing:
    /// the guest runs at CPL3 in both modes.
    #[must_use]
    pub const fn new(error: u64, user: bool) -> Self {
        Self { write: error & pf::WRITE != 0, fetch: error & pf::FETCH != 0, user }
    }

    /// The bits of an error code that describe the access.
    #[must_use]
    pub const fn error_bits(self) -> u64 {
        (if self.write { pf::WRITE } else { 0 })
            | (if self.user { pf::USER } else { 0 })
            | (if self.fetch { pf::FETCH } else { 0 })
    }
}

/// How a fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The access will succeed now.
    Mapped,
    /// The guest's tables forbid it: #PF with this error code.
    Reflect(u64),
    /// The tables allow it, but no RAM is there.
    Mmio(Gpa),
    /// No shadow page is free: [`Mmu::shrink`] and try again.
    NoMemory,
}

/// Neighbours that a fill looks at, a power of two.
const AROUND: usize = 16;

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
    /// Makes `access` to `gva` possible in the loaded address space, or says why it is not.
    ///
    /// # Panics
    /// If no root is loaded.
    pub fn fault(&self, vcpu: &mut VcpuMmu, gva: Gva, access: Access) -> Outcome {
        let roots = vcpu.roots.expect("a running vCPU has a root");
        if !self.is_legal(gva) {
            vcpu.stats.reflected += 1;
            return Outcome::Reflect(access.error_bits());
        }
        loop {
            let walk = match walk::walk(&self.env, roots.gfn, gva, access, self.config.paging) {
                Ok(walk) => walk,
                Err(walk::Denied(error)) => {
                    vcpu.stats.reflected += 1;
                    return Outcome::Reflect(error | access.error_bits());
                }
            };
            let gfn = walk.gfn(gva);
            let Some(hpa) = self.env.host_frame(gfn) else {
                return Outcome::Mmio(gfn.gpa().offset(gva.page_offset()));
            };
            if access.write && self.protected.get(gfn) {
                self.unprotect(gfn);
                vcpu.stats.unprotected += 1;
            }
            let root = if access.user { roots.umod } else { roots.smod };
            match self.map(vcpu, root, gva, &walk, hpa) {
                Ok(()) => {
                    vcpu.stats.mapped += 1;
                    return Outcome::Mapped;
                }
                Err(Failed::Retry) => {}
                Err(Failed::TooManyMappings(gfn)) => self.drop_mapping(gfn),
                Err(Failed::NoMemory) => return Outcome::NoMemory,
            }
        }
    }

    /// Where `gva` leads for `access`, with A and D set as the access would; nothing is mapped.
    ///
    /// # Errors
    /// The error code of the #PF.
    pub fn translate(&self, vcpu: &VcpuMmu, gva: Gva, access: Access) -> Result<Gpa, u64> {
        let denied = |walk::Denied(error)| error | access.error_bits();
        let roots = vcpu.roots.filter(|_| self.is_legal(gva)).ok_or(access.error_bits())?;
        let walk = walk::walk(&self.env, roots.gfn, gva, access, self.config.paging).map_err(denied)?;
        Ok(walk.gfn(gva).gpa().offset(gva.page_offset()))
    }

    fn map(
        &self,
        vcpu: &mut VcpuMmu,
        root: PageId,
        gva: Gva,
        walk: &Walk,
        hpa: Hpa,
    ) -> Result<(), Failed> {
        let mut page = root;
        for level in (2..=LEVELS).rev() {
            page = self.child(vcpu, page, level, gva, walk)?;
        }
        let at = EntryRef::new(page, gva.index(1));
        let role = self.pages.get(page).role();
        let want = if role.contains(Role::DIRECT) {
            self.direct_value(role, hpa)
        } else {
            self.leaf_value(role, walk.entry(1), hpa)
        };
        self.install(vcpu, at, want, || walk.still_true(&self.env))?;
        if walk.leaf == 1 {
            self.fault_around(vcpu, at, role, walk);
        }
        Ok(())
    }

    /// The entry for guest leaf entry `guest`, which maps `hpa`, in a table of `role`.
    #[inline]
    pub(crate) fn leaf_value(&self, role: Role, guest: GuestPte, hpa: Hpa) -> Spte {
        let gfn = guest.gfn();
        let mut value = hpa.0 | P | U | A | guest.0 & NX;
        if guest.has(W | D) && !self.protected.get(gfn) {
            // D starts out clear only where somebody will look at it: on a page table.
            value |= if self.tables.get(gfn) { W } else { W | D };
        }
        if role.contains(Role::USER_PATH) && guest.has(U) {
            value |= NX;
        }
        Spte(value)
    }

    fn direct_value(&self, role: Role, hpa: Hpa) -> Spte {
        let gfn = self.env.guest_frame(hpa);
        let mut value = hpa.0 | P | U | A;
        if role.contains(Role::DIRECT_WRITE) && !self.protected.get(gfn) {
            value |= if self.tables.get(gfn) { W } else { W | D };
        }
        if role.contains(Role::DIRECT_NX) {
            value |= NX;
        }
        Spte(value)
    }

    /// The shadow table that `page` (at `level`) links for `gva`, linked now if it is not.
    #[inline]
    fn child(
        &self,
        vcpu: &mut VcpuMmu,
        page: PageId,
        level: u8,
        gva: Gva,
        walk: &Walk,
    ) -> Result<PageId, Failed> {
        let index = gva.index(level);
        let entry = Spte(self.env.table(page).0[index].load(Acquire));
        let (gfn, role) = self.child_role(page, level, gva, walk);
        if entry.present() {
            let id = self.env.id(entry.hpa());
            let child = self.pages.get(id);
            let mirrored = (entry.0 ^ walk.entry(level.max(walk.leaf)).0) & (W | NX) == 0;
            // A supervisor root keeps a USER_ONLY tree as long as nothing in the slot needs more.
            let shares = level == LEVELS
                && walk.user
                && !self.config.paging.smep
                && child.role() == role | Role::USER_ONLY;
            if child.gfn() == gfn && (child.role() == role || shares) && mirrored {
                return Ok(id);
            }
            self.zap_link(EntryRef::new(page, index), entry);
            return Err(Failed::Retry);
        }
        if entry != Spte::ABSENT {
            core::hint::spin_loop();
            return Err(Failed::Retry);
        }
        let prefer_shared = level == LEVELS && walk.user && index < 256 && !self.config.paging.smep;
        let role = if prefer_shared { role | Role::USER_ONLY } else { role };
        let (id, origin) = self.find_or_make(gfn, role).ok_or(Failed::NoMemory)?;
        if origin == Origin::Found {
            // I3: what was there may be older than the guest's table.
            self.sync_page(id);
        }
        let token = vcpu.token();
        let link = Spte::link(self.env.hpa(id), walk.entry(level.max(walk.leaf)));
        let at = EntryRef::new(page, index);
        let linked = self.link_child(at, id, token, link, || walk.still_true(&self.env));
        if linked.is_err() {
            self.kill_if_unused(id);
        }
        linked?;
        vcpu.stats.links += 1;
        Ok(id)
    }

    /// Frame and role of the table below `page` on the way to `gva`.
    fn child_role(&self, page: PageId, level: u8, gva: Gva, walk: &Walk) -> (Gfn, Role) {
        let parent = self.pages.get(page).role();
        let mut flags = parent & Role::USER_ONLY;
        let entry = walk.entry(level.max(walk.leaf));
        if parent.contains(Role::USER_PATH) && entry.has(U) {
            flags |= Role::USER_PATH;
        }
        if level > walk.leaf {
            return (entry.gfn(), Role::at(level - 1, flags));
        }
        // A large guest page, taken apart: this table maps the part of it around `gva`.
        let pages = 1u64 << (9 * (u32::from(level) - 1));
        flags |= Role::DIRECT;
        if entry.has(W | D) {
            flags |= Role::DIRECT_WRITE;
        }
        if flags.contains(Role::USER_PATH) {
            flags |= Role::DIRECT_NX;
        }
        (Gfn(walk.gfn(gva).0 & !(pages - 1)), Role::at(level - 1, flags))
    }

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

    /// Brings leaf entry `at` to `want` (rules I1, I4).
    #[inline]
    fn install(
        &self,
        vcpu: &mut VcpuMmu,
        at: EntryRef,
        want: Spte,
        still_true: impl FnOnce() -> bool,
    ) -> Result<(), Failed> {
        let entry = &self.env.table(at.page()).0[at.index()];
        let now = Spte(entry.load(Acquire));
        if now == Spte::ABSENT {
            self.install_absent(vcpu, at, want, still_true)?;
            vcpu.stats.fills += 1;
            return Ok(());
        }
        if !now.present() {
            return Err(Failed::Retry);
        }
        if now.hpa() != want.hpa() {
            self.zap_leaf(at, now);
            return Err(Failed::Retry);
        }
        // The same frame: permissions may change in place, what the hardware noted stays.
        let next = Spte(want.0 | now.0 & D);
        if next == now {
            vcpu.stats.spurious += 1;
            return Ok(());
        }
        if !still_true() || entry.compare_exchange(now.0, next.0, AcqRel, Acquire).is_err() {
            return Err(Failed::Retry);
        }
        Ok(())
    }

    #[inline]
    fn install_absent(
        &self,
        vcpu: &mut VcpuMmu,
        at: EntryRef,
        want: Spte,
        still_true: impl FnOnce() -> bool,
    ) -> Result<(), Failed> {
        let entry = &self.env.table(at.page()).0[at.index()];
        self.pages.get(at.page()).mark_used(at.index());
        let token = vcpu.token();
        if entry.compare_exchange(0, token.0, AcqRel, Acquire).is_err() {
            return Err(Failed::Retry);
        }
        let gfn = self.env.guest_frame(want.hpa());
        let mut rmap = self.rmap(gfn).lock(&self.chunks);
        let result = match rmap.add(at) {
            Ok(()) => {
                // Under the lock: whoever protects the frame comes before us and is seen here, or
                // after us and finds the entry.
                let want = if self.protected.get(gfn) { Spte(want.0 & !W) } else { want };
                let installed = still_true()
                    && entry.compare_exchange(token.0, want.0, AcqRel, Acquire).is_ok();
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
    fn drop_mapping(&self, gfn: Gfn) {
        let newest = self.rmap(gfn).lock(&self.chunks).newest();
        if let Some(at) = newest {
            let now = Spte(self.env.table(at.page()).0[at.index()].load(Acquire));
            self.zap_leaf(at, now);
            self.env.flush_all();
        }
    }

    /// Installs present neighbours of the entry just filled: what the guest has touched before
    /// (A is set) and will most likely touch again.
    fn fault_around(&self, vcpu: &mut VcpuMmu, at: EntryRef, role: Role, walk: &Walk) {
        let first = at.index() & !(AROUND - 1);
        let table = self.env.table(at.page());
        for index in first..first + AROUND {
            if table.0[index].load(Acquire) != 0 {
                continue;
            }
            let gpa = walk.at(1).page().offset(8 * index as u64);
            let Some(guest) = self.env.load(gpa).map(GuestPte) else { return };
            let usable = guest.has(P | A)
                && (guest.has(U) || !role.contains(Role::USER_ONLY))
                && !guest.has_reserved(1, self.config.paging.physical_bits);
            if !usable {
                continue;
            }
            let Some(hpa) = self.env.host_frame(guest.gfn()) else { continue };
            let want = self.leaf_value(role, guest, hpa);
            let neighbour = EntryRef::new(at.page(), index);
            let installed = self.install_absent(vcpu, neighbour, want, || {
                walk.still_true(&self.env) && self.env.load(gpa) == Some(guest.0)
            });
            if installed.is_ok() {
                vcpu.stats.fills += 1;
            }
        }
    }
}
