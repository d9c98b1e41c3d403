//! Faults of the conventional MMU: a full one that may do anything, and a fast one for many
//! readers that only fills leaf entries.

use super::{
    Classic, NoMemory, RmapCell, Roots, Tracking,
    walk::{self, Walk},
};
use crate::host::Host;
use pv_abi::addr::{Gfn, Gva, Hpa};
use shadow_mmu::{
    Access, GuestMemory, Outcome, TablePool,
    page::{EntryRef, Key, PageId, Role},
    pte::{A, D, GuestPte, NX, P, Spte, U, W},
};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

/// Neighbours that a fill looks at.
const AROUND: usize = 16;

/// The answer to a fault that has one before any table is touched, or where it leads.
enum Walked {
    Answer(Outcome),
    Frame(Walk, Gfn, Hpa),
}

impl<R: RmapCell> Classic<R> {
    #[inline(always)]
    fn walk(&self, host: &Host, roots: Roots, gva: Gva, access: Access) -> Walked {
        if !gva.is_canonical() {
            return Walked::Answer(Outcome::Reflect(access.bits()));
        }
        let walk = match walk::walk(host, roots.gfn, gva, access, self.paging) {
            Ok(walk) => walk,
            Err(error) => return Walked::Answer(Outcome::Reflect(error)),
        };
        let gfn = walk.entry(1).gfn();
        match host.host_frame(gfn) {
            Some(hpa) => Walked::Frame(walk, gfn, hpa),
            None => Walked::Answer(Outcome::Mmio(gfn.gpa().offset(gva.page_offset()))),
        }
    }

    /// Resolves a fault, whatever it takes.
    pub fn fault(&mut self, host: &Host, roots: Roots, gva: Gva, access: Access) -> Outcome {
        let (walk, gfn, hpa) = match self.walk(host, roots, gva, access) {
            Walked::Answer(outcome) => return outcome,
            Walked::Frame(walk, gfn, hpa) => (walk, gfn, hpa),
        };
        if access.contains(Access::WRITE) && self.tracking(gfn) == Tracking::Protected {
            self.set_tracking(gfn, Tracking::Unsync);
            self.unsync.push(gfn);
        }
        match self.map(host, roots, gva, access, &walk, (gfn, hpa)) {
            Ok(()) => Outcome::Mapped,
            Err(NoMemory) => Outcome::NoMemory,
        }
    }

    fn map(
        &mut self,
        host: &Host,
        roots: Roots,
        gva: Gva,
        access: Access,
        walk: &Walk,
        (gfn, hpa): (Gfn, Hpa),
    ) -> Result<(), NoMemory> {
        let mut page = if access.contains(Access::USER) { roots.user } else { roots.supervisor };
        for level in [4, 3, 2] {
            page = match self.linked(host, page, level, gva, walk) {
                Some(child) => child,
                None => self.link(host, page, level, gva, walk)?,
            };
        }
        let (index, role) = (gva.index(1), self.page(page).key.role());
        let (at, entry) = (EntryRef::new(page, index), &host.table(page).0[index]);
        let mut now = Spte(entry.load(Acquire));
        if now.present() && now.hpa() != hpa {
            self.zap_leaf(host, at);
            now = Spte::ABSENT;
        }
        let value = self.leaf_value(gfn, walk.entry(1), hpa);
        if now == Spte::ABSENT {
            self.page(page).mark_used(index);
            entry.store(value.0, Release);
            self.rmaps[gfn.0 as usize].with(|rmap| rmap.push(at));
        } else if value.0 & !D != now.0 & !D {
            // D is the hardware's to set meanwhile.
            entry.fetch_or(value.0, AcqRel);
            entry.fetch_and(value.0 | D, AcqRel);
        }
        self.fault_around(host, at, role, walk, |entry, value| {
            entry.store(value, Release);
            true
        });
        Ok(())
    }

    /// The same by readers of a lock, who may be several: only a leaf entry is exchanged, and only
    /// where nothing was; `None` if more is to be done, by a writer. Writers are excluded, so
    /// what was walked cannot have been flushed since.
    pub fn fault_shared(
        &self,
        host: &Host,
        roots: Roots,
        gva: Gva,
        access: Access,
    ) -> Option<Outcome> {
        let (walk, gfn, hpa) = match self.walk(host, roots, gva, access) {
            Walked::Answer(outcome) => return Some(outcome),
            Walked::Frame(walk, gfn, hpa) => (walk, gfn, hpa),
        };
        if access.contains(Access::WRITE) && self.tracking(gfn) == Tracking::Protected {
            return None;
        }
        let mut page = if access.contains(Access::USER) { roots.user } else { roots.supervisor };
        for level in [4, 3, 2] {
            page = self.linked(host, page, level, gva, &walk)?;
        }
        let (index, role) = (gva.index(1), self.page(page).key.role());
        let (at, entry) = (EntryRef::new(page, index), &host.table(page).0[index]);
        let value = self.leaf_value(gfn, walk.entry(1), hpa);
        let now = Spte(entry.load(Acquire));
        if now != Spte::ABSENT {
            return ((now.0 ^ value.0) & !D == 0).then_some(Outcome::Mapped);
        }
        self.page(page).mark_used(index);
        if entry.compare_exchange(0, value.0, AcqRel, Acquire).is_ok() {
            self.rmaps[gfn.0 as usize].with(|rmap| rmap.push(at));
        }
        self.fault_around(host, at, role, &walk, |entry, value| {
            entry.compare_exchange(0, value, AcqRel, Acquire).is_ok()
        });
        Some(Outcome::Mapped)
    }

    /// The table linked for `gva` in `page` at `level`, if it stands for what the guest links.
    #[inline(always)]
    fn linked(
        &self,
        host: &Host,
        page: PageId,
        level: u8,
        gva: Gva,
        walk: &Walk,
    ) -> Option<PageId> {
        let entry = Spte(host.table(page).0[gva.index(level)].load(Acquire));
        let guest = walk.entry(level);
        if !entry.present() || (entry.0 ^ guest.0) & (W | NX) != 0 {
            return None;
        }
        let (child, key) = (host.id(entry.hpa()), self.page(page).key);
        let (found, wanted) = (self.page(child).key, child_key(key.role(), level, guest));
        let shares = level == 4 && walk.user;
        let same = found == wanted
            || shares && found == Key::new(wanted.gfn(), wanted.role() | Role::USER_ONLY);
        same.then_some(child)
    }

    /// Links the table for `gva` in `page` at `level`, in place of what may be there.
    #[cold]
    fn link(
        &mut self,
        host: &Host,
        page: PageId,
        level: u8,
        gva: Gva,
        walk: &Walk,
    ) -> Result<PageId, NoMemory> {
        let (index, guest) = (gva.index(level), walk.entry(level));
        let at = EntryRef::new(page, index);
        self.zap_link(host, at);
        let wanted = child_key(self.page(page).key.role(), level, guest);
        // A supervisor root keeps a USER_ONLY tree as long as nothing in the slot needs more.
        let shares = level == 4 && walk.user && index < 256;
        let role = if shares { wanted.role() | Role::USER_ONLY } else { wanted.role() };
        let (child, found) = self.find_or_make(host, wanted.gfn(), role)?;
        if found && self.tracking(wanted.gfn()) == Tracking::Unsync {
            self.sync_page(host, child);
        }
        self.page(page).mark_used(index);
        self.page_mut(child).parents.push(at);
        host.table(page).0[index].store(Spte::link(host.hpa(child), guest).0, Release);
        Ok(child)
    }

    /// Fills present neighbours of the entry just filled; `put` stores into an absent entry, and
    /// says whether it did.
    #[inline(always)]
    fn fault_around(
        &self,
        host: &Host,
        at: EntryRef,
        role: Role,
        walk: &Walk,
        put: impl Fn(&std::sync::atomic::AtomicU64, u64) -> bool,
    ) {
        let Some(guest_table) = host.table_at(walk.entry(2).gfn()) else { return };
        let table = host.table(at.page());
        let first = at.index() & !(AROUND - 1);
        let needed = if role.contains(Role::USER_ONLY) { P | A | U } else { P | A };
        for index in first..first + AROUND {
            let guest = GuestPte(guest_table.0[index].load(Acquire));
            if !guest.has(needed) || table.0[index].load(Acquire) != 0 {
                continue;
            }
            let gfn = guest.gfn();
            let Some(hpa) = host.host_frame(gfn) else { continue };
            if self.paging.is_reserved(guest, 1) {
                continue;
            }
            self.page(at.page()).mark_used(index);
            if put(&table.0[index], self.leaf_value(gfn, guest, hpa).0) {
                let neighbour = EntryRef::new(at.page(), index);
                self.rmaps[gfn.0 as usize].with(|rmap| rmap.push(neighbour));
            }
        }
    }

    /// The entry for guest leaf entry `guest`, which maps `gfn`. A protected table is not writable.
    #[inline(always)]
    pub(super) fn leaf_value(&self, gfn: Gfn, guest: GuestPte, hpa: Hpa) -> Spte {
        let writable = guest.has(W | D) && self.tracking(gfn) != Tracking::Protected;
        let write = if writable { W | D } else { 0 };
        Spte(hpa.0 | P | U | A | guest.0 & NX | write)
    }
}

/// What the table that `guest` links, at `level` in a table of `role`, is known as.
#[inline(always)]
fn child_key(role: Role, level: u8, guest: GuestPte) -> Key {
    Key::new(guest.gfn(), Role::at(level - 1, role & Role::USER_ONLY))
}
