//! Resolves a guest page fault against the shadow tables.
//! May: guest-memory, take-frame. Context: run-loop. Input: guest-controlled.
//!
//! The way of a fault: go down the shadow tables (`path.rs`); where that does not do, walk the
//! guest's tables, and go down the shadow tables again, linking those that are missing; install
//! the leaf (`install.rs`); look at its neighbours.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    install::{Failed, Filled},
    large::first,
    map::Origin,
    mmu::Mmu,
    mutant::{Mutant, planted},
    page::{EntryRef, Key, PageId, Role},
    path::{Leaf, Path},
    primitive::{
        Ordering::{Acquire, Relaxed},
        spin_loop,
    },
    pte::{A, D, GuestPte, NX, P, Spte, U, W},
    root::{Roots, VcpuMmu},
    walk::{self, Denied, LEVELS, Step, Walk},
};
use pv_abi::{
    addr::{Gfn, Gpa, Gva, Hpa},
    event::pf,
};

bitflags::bitflags! {
    /// What the guest tried. The bits are those of a #PF's error code, and W and U also those that a
    /// page-table entry needs.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Access: u64 {
        /// A write.
        const WRITE = pf::WRITE;
        /// In user mode.
        const USER = pf::USER;
        /// An instruction fetch.
        const FETCH = pf::FETCH;
    }
}

const _: () = assert!(pf::WRITE == W && pf::USER == U);

impl Access {
    /// Neither a write nor a fetch.
    pub const READ: Self = Self::empty();

    /// From the hardware's error code. Its U bit says nothing of the guest's mode: the guest runs
    /// at CPL3 in both.
    #[must_use]
    pub const fn from_error(code: u64) -> Self {
        Self::from_bits_truncate(code).difference(Self::USER)
    }

    /// The bits that every entry on the way must have.
    #[inline(always)]
    pub(crate) const fn needed(self) -> u64 {
        P | self.bits() & (W | U)
    }

    /// The bits that no entry on the way may have, SMEP aside.
    #[inline(always)]
    pub(crate) const fn never(self) -> u64 {
        if self.contains(Self::FETCH) { NX } else { 0 }
    }

    /// The D bit, for a write.
    #[inline(always)]
    pub(crate) fn dirties(self) -> u64 {
        if self.contains(Self::WRITE) && !planted(Mutant::LostD) { D } else { 0 }
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

/// What the guest's tables say of the page behind the one that was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is absent.
    Absent,
    /// It is there, or was not looked at.
    Unknown,
}

/// Neighbours that a fill looks at, a power of two.
const AROUND: usize = 16;

/// Whether the neighbours of a filled entry are filled too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    Yes,
    No,
}

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// Makes `access` to `gva` possible in the loaded address space, or says why it is not.
    ///
    /// # Panics
    /// If no root is loaded.
    #[inline]
    pub fn fault(&self, vcpu: &mut VcpuMmu, gva: Gva, access: Access) -> Outcome {
        self.resolve(vcpu, gva, access, Around::Yes)
    }

    /// The same for an access that the guest is about to repeat, having mapped the page itself:
    /// its neighbours are not looked at, for they have not changed. An access that is still refused, or
    /// needs room, is left to the guest, which makes it.
    ///
    /// What it tells of the next page is what a guest that goes from page to page is going to meet.
    ///
    /// # Panics
    /// If no root is loaded.
    #[inline(never)]
    pub fn prefault(&self, vcpu: &mut VcpuMmu, gva: Gva, access: Access) -> (Outcome, Next) {
        let roots = vcpu.roots.expect("a running vCPU has a root");
        if self.is_legal(gva)
            && let Path::Leaf(leaf) = self.path(roots, gva, access)
        {
            let absent = leaf.next.is_some_and(|entry| !GuestPte(entry.load(Relaxed)).present());
            if self.map_leaf(vcpu, access, leaf, Around::No).is_ok() {
                vcpu.stats.resolved(Outcome::Mapped);
                return (Outcome::Mapped, if absent { Next::Absent } else { Next::Unknown });
            }
        }
        (self.resolve(vcpu, gva, access, Around::No), Next::Unknown)
    }

    // A function of its own: inlined into an exit handler it would run out of registers.
    #[inline(never)]
    fn resolve(&self, vcpu: &mut VcpuMmu, gva: Gva, access: Access, around: Around) -> Outcome {
        let roots = vcpu.roots.expect("a running vCPU has a root");
        if !self.is_legal(gva) {
            let outcome = Outcome::Reflect(access.bits());
            vcpu.stats.resolved(outcome);
            return outcome;
        }
        let outcome = match self.attempt(vcpu, roots, gva, access, around) {
            Ok(outcome) => outcome,
            Err(failed) => self.try_again(vcpu, roots, gva, access, failed),
        };
        vcpu.stats.resolved(outcome);
        outcome
    }

    #[inline(always)]
    fn attempt(
        &self,
        vcpu: &mut VcpuMmu,
        roots: Roots,
        gva: Gva,
        access: Access,
        around: Around,
    ) -> Result<Outcome, Failed> {
        match self.path(roots, gva, access) {
            Path::Leaf(leaf) => self.map_leaf(vcpu, access, leaf, around),
            Path::Denied(Denied(error)) => Ok(Outcome::Reflect(error | access.bits())),
            Path::Unknown => self.walk_and_map(vcpu, roots, gva, access, around),
        }
    }

    /// An attempt failed; not inlined, for a loop around the first one would slow that down.
    #[cold]
    fn try_again(
        &self,
        vcpu: &mut VcpuMmu,
        roots: Roots,
        gva: Gva,
        access: Access,
        mut failed: Failed,
    ) -> Outcome {
        loop {
            match failed {
                // Another vCPU was faster, or is in the middle of something.
                Failed::Retry => spin_loop(),
                Failed::TooManyMappings(gfn) => self.drop_mapping(gfn),
                Failed::NoMemory => return Outcome::NoMemory,
            }
            match self.attempt(vcpu, roots, gva, access, Around::No) {
                Ok(outcome) => return outcome,
                Err(again) => failed = again,
            }
        }
    }

    /// The whole way: through the guest's tables, then down the shadow tables, linking what is
    /// missing.
    #[cold]
    fn walk_and_map(
        &self,
        vcpu: &mut VcpuMmu,
        roots: Roots,
        gva: Gva,
        access: Access,
        around: Around,
    ) -> Result<Outcome, Failed> {
        let mut walk = Walk::new();
        let paging = self.config.paging;
        let walked = walk::walk(&self.env, roots.gfn, gva, access, paging, &self.log, &mut walk);
        if let Err(Denied(error)) = walked {
            return Ok(Outcome::Reflect(error | access.bits()));
        }
        let gfn = walk.gfn(gva);
        let Some(hpa) = self.env.host_frame(gfn) else {
            return Ok(Outcome::Mmio(gfn.gpa().offset(gva.page_offset())));
        };
        let root = roots.of(access);
        let role = self.pages.get(root).role();
        let (page, role) = self.child::<4>(vcpu, root, role, gva, &walk)?;
        if walk.leaf >= 3 && self.map_large::<3>(vcpu, page, role, gva, &walk)? {
            return Ok(Outcome::Mapped);
        }
        let (page, role) = self.child::<3>(vcpu, page, role, gva, &walk)?;
        if walk.leaf >= 2 && self.map_large::<2>(vcpu, page, role, gva, &walk)? {
            return Ok(Outcome::Mapped);
        }
        let (page, role) = self.child::<2>(vcpu, page, role, gva, &walk)?;
        let guest = walk.step(1).ok_or(Failed::Retry)?;
        let target = self.target(EntryRef::new(page, gva.index(1)), gfn);
        self.map_leaf(vcpu, access, Leaf { guest, target, role, hpa, next: None }, around)
    }

    /// Maps `leaf` for `access`, which the guest's tables permit.
    #[inline(always)]
    fn map_leaf(
        &self,
        vcpu: &mut VcpuMmu,
        access: Access,
        leaf: Leaf<'_>,
        around: Around,
    ) -> Result<Outcome, Failed> {
        let Leaf { guest, target, role, hpa, .. } = leaf;
        if access.contains(Access::WRITE) {
            self.prepare_write(vcpu, target.gfn);
        }
        let direct = role.contains(Role::DIRECT);
        let value =
            if direct { direct_value(role, hpa) } else { leaf_value(role, guest.entry, hpa) };
        let filled = self.install(vcpu, target, value, guest)?;
        // Neighbours of an entry that was there had their turn when it was filled.
        if filled == Filled::Yes && around == Around::Yes && !direct {
            self.fault_around(vcpu, target.at, role);
        }
        Ok(Outcome::Mapped)
    }

    /// The guest is about to write to `gfn`.
    #[inline(always)]
    fn prepare_write(&self, vcpu: &mut VcpuMmu, gfn: Gfn) {
        self.log.wrote(gfn);
        if self.tables.get(gfn) && self.protected.get(gfn) {
            self.make_hot(gfn);
            vcpu.stats.unprotected += 1;
        }
    }

    /// Where `gva` leads for `access`, with A and D set as the access would; nothing is mapped.
    ///
    /// # Errors
    /// The error code of the #PF.
    pub fn translate(&self, vcpu: &VcpuMmu, gva: Gva, access: Access) -> Result<Gpa, u64> {
        let denied = |Denied(error)| error | access.bits();
        let roots = vcpu.roots.filter(|_| self.is_legal(gva)).ok_or(access.bits())?;
        let mut walk = Walk::new();
        walk::walk(&self.env, roots.gfn, gva, access, self.config.paging, &self.log, &mut walk)
            .map_err(denied)?;
        Ok(walk.gfn(gva).gpa().offset(gva.page_offset()))
    }

    /// The shadow table, and its role, that `page` (at `LEVEL`, in `role`) links for `gva`. It is
    /// linked now if it is not; a link that stands for something else is removed first (rule I3).
    #[inline(always)]
    fn child<const LEVEL: u8>(
        &self,
        vcpu: &mut VcpuMmu,
        page: PageId,
        role: Role,
        gva: Gva,
        walk: &Walk<'_>,
    ) -> Result<(PageId, Role), Failed> {
        let index = gva.index(LEVEL);
        let entry = Spte(self.env.table(page).0[index].load(Acquire));
        let guest = walk.entry(LEVEL);
        let (gfn, wanted) = child_role(role, LEVEL, gva, walk, guest);
        // A supervisor root keeps a USER_ONLY tree as long as nothing in the slot needs more.
        let shares = LEVEL == LEVELS && walk.user && !self.config.paging.smep;
        if entry.is_link() && (entry.0 ^ guest.0) & (W | NX) == 0 {
            let id = self.env.id(entry.hpa());
            let key = self.pages.get(id).key();
            let unseen = planted(Mutant::ChildRole) && key.gfn() == gfn;
            if key == Key::new(gfn, wanted) || unseen {
                return Ok((id, wanted));
            }
            if shares && key == Key::new(gfn, wanted | Role::USER_ONLY) {
                return Ok((id, wanted | Role::USER_ONLY));
            }
        }
        let wanted = if shares && index < 256 { wanted | Role::USER_ONLY } else { wanted };
        let (at, key) = (EntryRef::new(page, index), Key::new(gfn, wanted));
        let id = self.link(vcpu, at, entry, key, walk.step(LEVEL).ok_or(Failed::Retry)?)?;
        Ok((id, wanted))
    }

    /// Links the table with `key` at `at`, where `entry` was found, for guest entry `guest`.
    #[cold]
    fn link(
        &self,
        vcpu: &mut VcpuMmu,
        at: EntryRef,
        entry: Spte,
        key: Key,
        guest: Step<'_>,
    ) -> Result<PageId, Failed> {
        if entry.present() {
            self.zap(at, entry);
            return Err(Failed::Retry);
        }
        if entry != Spte::ABSENT {
            return Err(Failed::Retry);
        }
        let (id, origin) = self.find_or_make(key.gfn(), key.role()).ok_or(Failed::NoMemory)?;
        let (token, link) = (vcpu.token(), Spte::link(self.env.hpa(id), guest.entry));
        let linked = self.claim_link(at, id, token, link).and_then(|claim| {
            // I3: what was there may be older than the guest's table, and so may the tables it
            // links. Compared with the token in place: a flush of one address that comes later
            // takes it away, and does not look at what is not linked.
            if origin == Origin::Found && !planted(Mutant::FoundNotCompared) {
                if key.role().level() > 1 && !planted(Mutant::FoundNotDrained) {
                    self.sync_hot(vcpu);
                }
                self.sync_page(id);
            }
            self.link_claimed(claim, || guest.still_true())
        });
        if linked.is_err() {
            self.kill_if_unused(id);
        }
        linked?;
        vcpu.stats.links += 1;
        Ok(id)
    }

    /// Installs present neighbours of the entry just filled: what the guest has touched before
    /// (A is set) and will most likely touch again.
    #[inline(never)]
    fn fault_around(&self, vcpu: &mut VcpuMmu, at: EntryRef, role: Role) {
        let guest_table = self.pages.get(at.page()).gfn();
        let Some(guest_table) = self.env.table_at(guest_table) else { return };
        let table = self.env.table(at.page());
        let first = at.index() & !(AROUND - 1);
        // Often there is no other that was touched. A sum is quicker than a look at each.
        let touched = |index: usize| guest_table.0[index].load(Relaxed) & A;
        if (first..first + AROUND).map(touched).sum::<u64>() <= A {
            return;
        }
        let user = role.contains(Role::USER_ONLY) && !planted(Mutant::AroundUser);
        let needed = if user { P | A | U } else { P | A };
        for index in first..first + AROUND {
            let slot = &guest_table.0[index];
            let guest = GuestPte(slot.load(Acquire));
            if !guest.has(needed) || table.0[index].load(Acquire) != 0 {
                continue;
            }
            let Some(hpa) = self.env.host_frame(guest.gfn()) else { continue };
            if self.config.paging.is_reserved(guest, 1) {
                continue;
            }
            let value = leaf_value(role, guest, hpa);
            let neighbour = self.target(EntryRef::new(at.page(), index), guest.gfn());
            let installed =
                self.install_absent::<1>(vcpu, neighbour, value, || slot.load(Acquire) == guest.0);
            if installed.is_ok() {
                vcpu.stats.fills += 1;
            }
        }
    }
}

/// Frame and role of the table that guest entry `guest`, at `level` in a table of `role`, stands
/// for on the way to `gva`.
#[inline(always)]
fn child_role(role: Role, level: u8, gva: Gva, walk: &Walk<'_>, guest: GuestPte) -> (Gfn, Role) {
    let mut flags = role & (Role::USER_ONLY | Role::USER_PATH);
    if !guest.has(U) {
        flags &= !Role::USER_PATH;
    }
    if level > walk.leaf {
        return (guest.gfn(), Role::at(level - 1, flags));
    }
    // A large guest page, taken apart: this table maps the part of it around `gva`.
    flags |= Role::DIRECT;
    if guest.has(W | D) {
        flags |= Role::DIRECT_WRITE;
    }
    if flags.contains(Role::USER_PATH) {
        flags |= Role::DIRECT_NX;
    }
    (first(walk.gfn(gva), level), Role::at(level - 1, flags))
}

/// The entry for guest leaf entry `guest`, which maps `hpa`, in a table of `role`. If the frame is
/// a page table itself, [`Mmu::tame`] has the last word on W and D.
#[inline(always)]
pub(crate) fn leaf_value(role: Role, guest: GuestPte, hpa: Hpa) -> Spte {
    let mut value = hpa.0 | P | U | A | guest.0 & NX;
    let clean = planted(Mutant::CleanWritable) || planted(Mutant::LostD);
    if guest.has(if clean { W } else { W | D }) {
        value |= W | D;
    }
    if role.contains(Role::USER_PATH) && guest.has(U) && !planted(Mutant::SmepLost) {
        value |= NX;
    }
    Spte(value)
}

pub(crate) fn direct_value(role: Role, hpa: Hpa) -> Spte {
    let write = if role.contains(Role::DIRECT_WRITE) { W | D } else { 0 };
    let no_execute = if role.contains(Role::DIRECT_NX) { NX } else { 0 };
    Spte(hpa.0 | P | U | A | write | no_execute)
}
