//! Keeps shadow entries true to the guest's: syncing, flushes, notes.
//! May: guest-memory. Context: run-loop, irq-off. Input: guest-controlled.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    fault::leaf_value,
    hot::Look,
    large::first,
    mmu::Mmu,
    mutant::{Mutant, planted},
    page::{EntryRef, PageId, Role},
    primitive::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, SeqCst},
        fence, spin_loop,
    },
    pte::{A, D, GuestPte, NX, P, PS, Spte, U, W},
    root::{Roots, VcpuMmu},
    walk::Step,
};
use pv_abi::addr::{Gfn, Gpa, Gva};

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// Brings entry `index` of page `id`, which is `now`, back to what the guest's entry allows.
    #[inline]
    fn sync_entry(&self, id: PageId, index: usize, now: Spte) {
        let page = self.pages.get(id);
        let (role, at) = (page.role(), EntryRef::new(id, index));
        let guest = GuestPte(self.env.load(page.gfn().gpa().offset(8 * index as u64)).unwrap_or(0));
        if role.level() == 1 {
            let _ = self.sync_leaf(at, now, role, guest);
        } else if now.is_large() {
            self.sync_large(at, now, role, guest);
        } else if !now.present() || !self.link_is_true(now, role, guest) {
            self.zap(at, now);
        }
    }

    /// Syncs entry `index` of page `id` if it is not absent.
    #[inline]
    fn sync_one(&self, id: PageId, index: usize) {
        let now = Spte(self.env.table(id).0[index].load(Acquire));
        if now != Spte::ABSENT {
            self.sync_entry(id, index, now);
        }
    }

    /// Where the mapping is the same, permissions are taken away in place; where it is not, the entry
    /// goes. An entry whose guest A bit is clear goes too, so that the next access sets it (F5).
    /// Returns what the guest's entry would give, if that is more than `now`, which was left alone.
    #[inline(always)]
    fn sync_leaf(&self, at: EntryRef, now: Spte, role: Role, guest: GuestPte) -> Option<Spte> {
        let accessed = if planted(Mutant::ClearAPasses) { 0 } else { A };
        let same_frame = now.present()
            && guest.has(P | accessed)
            && (guest.has(U) || !role.contains(Role::USER_ONLY))
            && !self.config.paging.is_reserved(guest, 1)
            && self.env.host_frame(guest.gfn()) == Some(now.hpa());
        if !same_frame {
            self.zap(at, now);
            return None;
        }
        // Only taken away: what is given takes the three steps of an install, and a fault.
        let want = leaf_value(role, guest, now.hpa());
        let taken = now.0 & (want.0 | !W) | want.0 & NX;
        let next = if planted(Mutant::SyncGives) { want.0 } else { taken };
        if next != now.0 {
            let entry = &self.env.table(at.page()).0[at.index()];
            if entry.compare_exchange(now.0, next, AcqRel, Acquire).is_err() {
                self.zap(at, Spte(entry.load(Acquire)));
            }
            return None;
        }
        ((want.0 ^ now.0) & !D != 0).then_some(want)
    }

    /// The guest has stored the leaf entry behind entry `index` of page `id`: takes away what that
    /// takes, and gives what it gives. A guest that gives a permission is about to use it, and would
    /// fault.
    #[inline(always)]
    fn sync_noted(&self, vcpu: &mut VcpuMmu, at: EntryRef, role: Role, slot: &AtomicU64) {
        let now = Spte(self.env.table(at.page()).0[at.index()].load(Acquire));
        if now == Spte::ABSENT {
            return;
        }
        let guest = Step { slot, entry: GuestPte(slot.load(Acquire)) };
        if let Some(value) = self.sync_leaf(at, now, role, guest.entry) {
            self.give(vcpu, at, now, value, guest);
        }
    }

    /// True if link `now`, in a table of role `parent`, still stands for guest entry `guest`.
    pub(crate) fn link_is_true(&self, now: Spte, parent: Role, guest: GuestPte) -> bool {
        let level = parent.level();
        let child = self.pages.get(self.env.id(now.hpa()));
        let role = child.role();
        let direct = role.contains(Role::DIRECT);
        // Under SMEP U takes a permission away as well.
        let user_path = parent.contains(Role::USER_PATH) && guest.has(U);
        let user = (guest.has(U) || !role.contains(Role::USER_ONLY))
            && role.contains(Role::USER_PATH) == user_path;
        let mirrored = planted(Mutant::LinkPermissions) || (now.0 ^ guest.0) & (W | NX) == 0;
        let kind = if direct {
            guest.is_large(level)
                && first(guest.gfn(), level) == child.gfn()
                && role.contains(Role::DIRECT_WRITE) == guest.has(W | D)
        } else {
            !(level < 4 && guest.has(PS)) && guest.gfn() == child.gfn()
        };
        guest.has(P | A)
            && (planted(Mutant::LinkTarget) || kind)
            && user
            && mirrored
            && !self.config.paging.is_reserved(guest, level)
    }

    /// Syncs every entry of page `id`. A large page's table shadows no guest table: its link
    /// says it all.
    pub(crate) fn sync_page(&self, id: PageId) {
        if !self.pages.get(id).role().contains(Role::DIRECT) {
            self.for_each_entry(id, |index, now| self.sync_entry(id, index, now));
        }
    }

    /// Syncs every page that shadows the table in `gfn`.
    pub(crate) fn sync_table(&self, gfn: Gfn) {
        for id in self.map.chain(&self.pages, gfn) {
            self.sync_page(id);
        }
    }

    /// Syncs the hot tables that were written since they were last looked at.
    pub(crate) fn sync_hot(&self, vcpu: &mut VcpuMmu) {
        let mut look = Look::default();
        self.hot.look(&mut look, |gfn| self.take_dirty(gfn));
        if !look.written.is_empty() {
            // A clean D bit counts only once no translation with a set one is left: flush, then
            // compare.
            if !planted(Mutant::SyncUnflushed) {
                self.env.flush_all();
            }
            for taken in &look.written {
                vcpu.stats.synced += 1;
                self.sync_table(taken.gfn);
            }
            self.hot.done(&look.written);
        }
        for &gfn in &look.cold {
            vcpu.stats.protected += 1;
            self.cool(gfn);
        }
    }

    /// Tells whether `gfn` was written through any mapping, and starts afresh.
    fn take_dirty(&self, gfn: Gfn) -> bool {
        let rmap = self.rmap(gfn).lock(&self.chunks);
        let mut dirty = self.written.get(gfn);
        if dirty {
            self.written.clear(gfn);
        }
        rmap.for_each(|at| {
            let entry = &self.env.table(at.page()).0[at.index()];
            if Spte(entry.load(Acquire)).has(P | D) {
                entry.fetch_and(!D, AcqRel);
                dirty = true;
            }
        });
        dirty
    }

    /// L1 itself has written to `gfn` on the guest's behalf, past every mapping.
    pub fn wrote(&self, gfn: Gfn) {
        // The store comes before the look at the bitmap, as for the shim's notes.
        fence(SeqCst);
        self.log.wrote(gfn);
        if self.tables.get(gfn) {
            self.written.set(gfn);
            if self.protected.get(gfn) {
                self.make_hot(gfn);
            }
        }
    }

    /// Lists `gfn` among the hot tables, unprotected, if it still is a table.
    pub(crate) fn make_hot(&self, gfn: Gfn) {
        let unprotect = || {
            let table = self.tables.get(gfn);
            if table {
                self.protected.clear(gfn);
            }
            table
        };
        while let Err(other) = self.hot.add(gfn, unprotect) {
            self.cool(other);
            spin_loop();
        }
    }

    /// Protects hot table `gfn` and looks at it a last time. It leaves the list only then, so
    /// that no flush misses what was written before.
    pub(crate) fn cool(&self, gfn: Gfn) {
        let Some(taken) = self.hot.take(gfn, || self.protected.set(gfn)) else { return };
        if self.write_protect(gfn) {
            self.env.flush_all();
        }
        if planted(Mutant::UnlistedEarly) {
            self.hot.remove(gfn);
        }
        if self.hot.while_listed(taken, || self.take_dirty(gfn)) {
            // As in `sync_hot`: the entry may be newer than our flush, and its store not done.
            self.env.flush_all();
            self.sync_table(gfn);
        }
        self.hot.done(&[taken]);
        self.hot.remove_if(gfn, || self.protected.get(gfn));
    }

    /// A root whose stores nobody announces (rule N4) loses its lower half at every flush; its
    /// upper half is compared.
    #[inline]
    pub(crate) fn sync_unpinned(&self, roots: Roots) {
        if !planted(Mutant::UnpinnedKept) && self.notes_mode() && !self.pins.get(roots.gfn) {
            self.drop_lower_half(roots);
        }
    }

    #[cold]
    fn drop_lower_half(&self, roots: Roots) {
        for id in [roots.smod, roots.umod] {
            self.clear_entries(id, 0..256);
            self.sync_page(id);
        }
    }

    /// Flushes the current address space and the kernel's (rule F2). The caller flushes the
    /// hardware in any case (F3).
    pub fn flush(&self, vcpu: &mut VcpuMmu) {
        vcpu.stats.flushes += 1;
        self.sync_hot(vcpu);
        if let Some(roots) = vcpu.roots {
            self.sync_unpinned(roots);
        }
        self.reclaim();
    }

    /// Flushes one address (rule F6: a few dozen instructions). The caller flushes the hardware.
    #[inline]
    pub fn flush_address(&self, vcpu: &VcpuMmu, gva: Gva) {
        self.flush_noted_address(vcpu, gva, None);
    }

    /// The same where the entry at `noted` was [noted](Self::note) after the guest asked for the flush:
    /// if that is the leaf entry for `gva`, it was compared already.
    #[inline(always)]
    pub fn flush_noted_address(&self, vcpu: &VcpuMmu, gva: Gva, noted: Option<Gpa>) {
        let Some(roots) = vcpu.roots else { return };
        if !self.is_legal(gva) {
            return;
        }
        if planted(Mutant::OneRoot) {
            self.sync_path(roots.smod, gva, None);
            return;
        }
        // Notes have kept the links true already (N1): the leaf remains.
        let trusted = planted(Mutant::LeafOnly) || self.links_are_true(roots);
        if !(trusted && self.sync_leaves(roots, gva, noted)) {
            let shared = self.sync_path(roots.smod, gva, None);
            self.sync_path(roots.umod, gva, shared);
        }
    }

    /// Syncs the leaf entry for `gva` below both roots, unless the guest's is the one at `noted`, for which
    /// all tables were synced that stand for its table. False if a link on the way there is just being
    /// made: its maker may have compared what it leads to before the guest's store, so it must not
    /// succeed (I2).
    #[inline(always)]
    fn sync_leaves(&self, roots: Roots, gva: Gva, noted: Option<Gpa>) -> bool {
        let (smod, umod) = (self.env.table(roots.smod), self.env.table(roots.umod));
        let index = gva.index(4);
        let (smod, umod) = (Spte(smod.0[index].load(Acquire)), Spte(umod.0[index].load(Acquire)));
        self.sync_leaf_below(smod, gva, noted)
            && (umod.hpa() == smod.hpa() || self.sync_leaf_below(umod, gva, noted))
    }

    /// The same below root entry `upper`.
    #[inline(always)]
    fn sync_leaf_below(&self, upper: Spte, gva: Gva, noted: Option<Gpa>) -> bool {
        let settled = |entry: Spte| entry.is_settled() || planted(Mutant::MakerTrusted);
        let Some(middle) = self.follow::<3>(upper, gva) else { return settled(upper) };
        let Some(lower) = self.follow::<2>(middle, gva) else { return settled(middle) };
        let Some(page) = self.linked_table(lower) else { return settled(lower) };
        let index = gva.index(1);
        let entry = self.pages.get(page).gfn().gpa().offset(8 * index as u64);
        if noted != Some(entry) {
            self.sync_one(page, index);
        }
        true
    }

    /// Syncs the entry for `gva` below `root` at each level; stops at the table `known`, which was
    /// looked at already. Returns the level-3 table.
    fn sync_path(&self, root: PageId, gva: Gva, known: Option<PageId>) -> Option<PageId> {
        let below_root = self.sync_step(root, gva, 4).filter(|&id| Some(id) != known);
        if let Some(page) = below_root
            && let Some(page) = self.sync_step(page, gva, 3)
            && let Some(page) = self.sync_step(page, gva, 2)
        {
            self.sync_one(page, gva.index(1));
        }
        below_root
    }

    /// Syncs the entry for `gva` in `page` at `level`. Returns the table it links then.
    fn sync_step(&self, page: PageId, gva: Gva, level: u8) -> Option<PageId> {
        let index = gva.index(level);
        self.sync_one(page, index);
        self.linked_table(Spte(self.env.table(page).0[index].load(Acquire)))
    }

    /// The table that `entry` links, if that shadows one of the guest's. What stands for a large page
    /// goes with its link.
    #[inline(always)]
    pub(crate) fn linked_table(&self, entry: Spte) -> Option<PageId> {
        let table = entry.is_link().then(|| self.env.id(entry.hpa()))?;
        (!self.pages.get(table).role().contains(Role::DIRECT)).then_some(table)
    }

    /// The guest announces that it stored the entry at `gpa` (rules N1, N2). What the shadow
    /// holds for it is synced now; the guest flushes when it must.
    // A function of its own: inlined into the run loop it would run out of registers.
    #[inline(never)]
    pub fn note(&self, vcpu: &mut VcpuMmu, gpa: Gpa) {
        vcpu.stats.notes += 1;
        self.log.wrote(gpa.gfn());
        let index = (gpa.page_offset() / 8) as usize;
        for (id, page) in self.map.pages(&self.pages, gpa.gfn()) {
            let role = page.role();
            if role.level() == 1
                && !role.contains(Role::DIRECT)
                && let Some(table) = self.env.table_at(gpa.gfn())
            {
                self.sync_noted(vcpu, EntryRef::new(id, index), role, &table.0[index]);
            } else if role.level() < 4 || !self.config.reserved_slots.contains(&index) {
                self.sync_one(id, index);
            }
            if planted(Mutant::NoteReachesOne) {
                break;
            }
        }
    }

    /// Notes were lost (rule N3): nothing that stands for an upper-level table can be trusted.
    pub fn notes_lost(&self) {
        for id in 0..self.pages.capacity() {
            let page = self.pages.get(id);
            // Not only roots: a table below may be linked anew before its last link is gone.
            let least = if planted(Mutant::RootsOnly) { 4 } else { 2 };
            if !page.is_dead() && page.role().level() >= least {
                self.clear_entries(id, 0..512);
            }
        }
        self.env.flush_all();
    }

    /// The table in `gfn` is one no longer: drop what stands for it, wherever it is linked.
    pub fn forget_table(&self, gfn: Gfn) {
        for id in self.map.chain(&self.pages, gfn) {
            self.unlink(id);
        }
    }
}
