//! Resolves a guest page fault against the shadow tables.
//! May: guest-memory, take-frame. Context: run-loop. Input: guest-controlled.
//!
//! The way of a fault: walk the guest's tables; go down the shadow tables, linking those that are
//! missing; install the leaf (`install.rs`); look at its neighbours.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    install::Failed,
    map::Origin,
    mmu::Mmu,
    page::{EntryRef, Key, PageId, Role},
    primitive::{Ordering::Acquire, spin_loop},
    pte::{A, D, GuestPte, NX, P, PS, Spte, U, W},
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
    /// its neighbours are not looked at, for they have not changed.
    ///
    /// # Panics
    /// If no root is loaded.
    #[inline]
    pub fn prefault(&self, vcpu: &mut VcpuMmu, gva: Gva, access: Access) -> Outcome {
        self.resolve(vcpu, gva, access, Around::No)
    }

    #[inline(always)]
    fn resolve(&self, vcpu: &mut VcpuMmu, gva: Gva, access: Access, around: Around) -> Outcome {
        let roots = vcpu.roots.expect("a running vCPU has a root");
        if !self.is_legal(gva) {
            vcpu.stats.reflected += 1;
            return Outcome::Reflect(access.error_bits());
        }
        loop {
            let mut walk = Walk::new();
            let walked = walk::walk(
                &self.env,
                roots.gfn,
                gva,
                access,
                self.config.paging,
                &self.log,
                &mut walk,
            );
            if let Err(walk::Denied(error)) = walked {
                vcpu.stats.reflected += 1;
                return Outcome::Reflect(error | access.error_bits());
            }
            let gfn = walk.gfn(gva);
            let Some(hpa) = self.env.host_frame(gfn) else {
                return Outcome::Mmio(gfn.gpa().offset(gva.page_offset()));
            };
            if access.write {
                self.log.wrote(gfn);
                if self.tables.get(gfn) && self.protected.get(gfn) {
                    self.make_hot(gfn);
                    vcpu.stats.unprotected += 1;
                }
            }
            let root = if access.user { roots.umod } else { roots.smod };
            match self.map(vcpu, root, gva, &walk, (gfn, hpa), around) {
                Ok(()) => {
                    vcpu.stats.mapped += 1;
                    return Outcome::Mapped;
                }
                // Another vCPU was faster, or is in the middle of something.
                Err(Failed::Retry) => spin_loop(),
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
        let mut walk = Walk::new();
        walk::walk(&self.env, roots.gfn, gva, access, self.config.paging, &self.log, &mut walk)
            .map_err(denied)?;
        Ok(walk.gfn(gva).gpa().offset(gva.page_offset()))
    }

    #[inline(always)]
    fn map(
        &self,
        vcpu: &mut VcpuMmu,
        root: PageId,
        gva: Gva,
        walk: &Walk<'_>,
        (gfn, hpa): (Gfn, Hpa),
        around: Around,
    ) -> Result<(), Failed> {
        let role = self.pages.get(root).role();
        let (page, role) = self.child::<4>(vcpu, root, role, gva, walk)?;
        if walk.leaf >= 3 && self.map_large::<3>(vcpu, page, role, gva, walk)? {
            return Ok(());
        }
        let (page, role) = self.child::<3>(vcpu, page, role, gva, walk)?;
        if walk.leaf >= 2 && self.map_large::<2>(vcpu, page, role, gva, walk)? {
            return Ok(());
        }
        let (page, role) = self.child::<2>(vcpu, page, role, gva, walk)?;
        let at = EntryRef::new(page, gva.index(1));
        let value = if role.contains(Role::DIRECT) {
            direct_value(role, hpa)
        } else {
            leaf_value(role, walk.entry(1), hpa)
        };
        self.install(vcpu, at, gfn, value, walk)?;
        if walk.leaf == 1 && around == Around::Yes {
            self.fault_around(vcpu, at, role, walk);
        }
        Ok(())
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
        if entry.0 & (P | PS) == P && (entry.0 ^ guest.0) & (W | NX) == 0 {
            let id = self.env.id(entry.hpa());
            let key = self.pages.get(id).key();
            if key == Key::new(gfn, wanted) {
                return Ok((id, wanted));
            }
            if shares && key == Key::new(gfn, wanted | Role::USER_ONLY) {
                return Ok((id, wanted | Role::USER_ONLY));
            }
        }
        let wanted = if shares && index < 256 { wanted | Role::USER_ONLY } else { wanted };
        let id =
            self.link(vcpu, EntryRef::new(page, index), entry, Key::new(gfn, wanted), guest, walk)?;
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
        guest: GuestPte,
        walk: &Walk<'_>,
    ) -> Result<PageId, Failed> {
        if entry.is_large() {
            self.zap_leaf(at, entry);
            return Err(Failed::Retry);
        }
        if entry.present() {
            self.zap_link(at, entry);
            return Err(Failed::Retry);
        }
        if entry != Spte::ABSENT {
            return Err(Failed::Retry);
        }
        let (id, origin) = self.find_or_make(key.gfn(), key.role()).ok_or(Failed::NoMemory)?;
        let (token, link) = (vcpu.token(), Spte::link(self.env.hpa(id), guest));
        let linked = self.link_child(at, id, token, link, || {
            // I3: what was there may be older than the guest's table, and so may the tables it
            // links. Compared with the token in place: a flush of one address that comes later
            // takes it away, and does not look at what is not linked.
            if origin == Origin::Found {
                if key.role().level() > 1 {
                    self.sync_hot(vcpu);
                }
                self.sync_page(id);
            }
            walk.still_true()
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
    fn fault_around(&self, vcpu: &mut VcpuMmu, at: EntryRef, role: Role, walk: &Walk<'_>) {
        let Some(guest_table) = self.env.table_at(walk.entry(2).gfn()) else { return };
        let table = self.env.table(at.page());
        let first = at.index() & !(AROUND - 1);
        let needed = if role.contains(Role::USER_ONLY) { P | A | U } else { P | A };
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
            let neighbour = EntryRef::new(at.page(), index);
            let gfn = guest.gfn();
            let installed = self.install_absent::<1>(vcpu, neighbour, gfn, value, || {
                walk.still_true() && slot.load(Acquire) == guest.0
            });
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
    let pages = 1u64 << (9 * (u32::from(level) - 1));
    flags |= Role::DIRECT;
    if guest.has(W | D) {
        flags |= Role::DIRECT_WRITE;
    }
    if flags.contains(Role::USER_PATH) {
        flags |= Role::DIRECT_NX;
    }
    (Gfn(walk.gfn(gva).0 & !(pages - 1)), Role::at(level - 1, flags))
}

/// The entry for guest leaf entry `guest`, which maps `hpa`, in a table of `role`. If the frame is
/// a page table itself, [`Mmu::tame`] has the last word on W and D.
#[inline(always)]
pub(crate) fn leaf_value(role: Role, guest: GuestPte, hpa: Hpa) -> Spte {
    let mut value = hpa.0 | P | U | A | guest.0 & NX;
    if guest.has(W | D) {
        value |= W | D;
    }
    if role.contains(Role::USER_PATH) && guest.has(U) {
        value |= NX;
    }
    Spte(value)
}

pub(crate) fn direct_value(role: Role, hpa: Hpa) -> Spte {
    let write = if role.contains(Role::DIRECT_WRITE) { W | D } else { 0 };
    let no_execute = if role.contains(Role::DIRECT_NX) { NX } else { 0 };
    Spte(hpa.0 | P | U | A | write | no_execute)
}
