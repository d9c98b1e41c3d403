//! Maps large guest pages by large shadow entries.
//! May: guest-memory. Context: run-loop. Input: guest-controlled.
//!
//! Where the host's frames allow it, a large guest page is one entry. It is taken apart, into a
//! DIRECT table of small entries, where single frames matter: a block that holds a page table is
//! mapped by small entries, because tables are watched by D bits and protected one by one, and so
//! is everything while writes are logged. When the reason is gone, the next fault on the page puts
//! it together again.

use crate::{
    env::{GuestMemory, TablePool, TlbOps},
    fault::{direct_value, leaf_value},
    install::Failed,
    mmu::Mmu,
    mutant::{Mutant, planted},
    page::{EntryRef, PageId, Role},
    primitive::{
        AtomicU32,
        Ordering::{AcqRel, Acquire},
    },
    pte::{A, GuestPte, NX, P, PS, Spte, U, W},
    refs::RefList,
    root::VcpuMmu,
    walk::Walk,
};
use alloc::boxed::Box;
use pv_abi::addr::{Gfn, Gva};

/// Levels at which a page may be large.
const LEVELS: [u8; 2] = [2, 3];

/// Frames of a page at `level`.
pub(crate) const fn frames(level: u8) -> u64 {
    1 << (9 * (level as u32 - 1))
}

/// The first frame of the page at `level` that holds `gfn`.
pub(crate) const fn first(gfn: Gfn, level: u8) -> Gfn {
    Gfn(gfn.0 & !(frames(level) - 1))
}

/// Guest frames that one large page could map.
#[derive(Debug)]
pub(crate) struct Block {
    /// Large entries that do.
    mappings: RefList,
    /// How many of the frames are shadowed as a table.
    tables: AtomicU32,
}

/// All blocks of a VM, of 2 MiB and of 1 GiB.
#[derive(Debug)]
pub(crate) struct Blocks([Box<[Block]>; 2]);

impl Blocks {
    pub(crate) fn new(guest_frames: u64) -> Self {
        let blocks = |level| {
            (0..guest_frames.div_ceil(frames(level)))
                .map(|_| Block { mappings: RefList::new(), tables: AtomicU32::new(0) })
                .collect()
        };
        Self(LEVELS.map(blocks))
    }

    fn get(&self, level: u8, gfn: Gfn) -> Option<&Block> {
        self.0[usize::from(level) - 2].get((gfn.0 / frames(level)) as usize)
    }

    /// The blocks around `gfn`.
    fn around(&self, gfn: Gfn) -> impl Iterator<Item = &Block> {
        LEVELS.into_iter().filter_map(move |level| self.get(level, gfn))
    }

    /// References to large entries that map `gfn`, by level.
    pub(crate) fn mappings(&self, level: u8, gfn: Gfn) -> &RefList {
        &self.0[usize::from(level) - 2][(gfn.0 / frames(level)) as usize].mappings
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &RefList> {
        self.0.iter().flatten().map(|block| &block.mappings)
    }

    pub(crate) fn remove_table(&self, gfn: Gfn) {
        for block in self.around(gfn) {
            block.tables.fetch_sub(1, AcqRel);
        }
    }
}

impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
    /// `gfn` becomes a table: from here on no large entry maps it. The caller flushes.
    pub(crate) fn add_table(&self, gfn: Gfn) {
        // Whoever installs a large entry looks at the count under the lock of the list: it comes
        // first and is found here, or it sees the count.
        if planted(Mutant::SplitGap) {
            let _ = self.zap_large(gfn);
        }
        for block in self.blocks.around(gfn) {
            block.tables.fetch_add(1, AcqRel);
        }
        if !(planted(Mutant::SplitGap) || planted(Mutant::SplitKeepsLarge)) {
            let _ = self.zap_large(gfn);
        }
    }

    /// Removes the large entries that map `gfn`; true if there was one, so that a flush is due.
    pub(crate) fn zap_large(&self, gfn: Gfn) -> bool {
        let lists = self.blocks.around(gfn).map(|block| &block.mappings);
        lists.filter(|list| !list.is_empty()).fold(false, |any, list| self.zap_leaves(list) | any)
    }

    /// True while nothing asks for small entries in the page at `level` that holds `gfn`.
    pub(crate) fn may_be_large(&self, level: u8, gfn: Gfn) -> bool {
        let block = self.blocks.get(level, gfn);
        block.is_some_and(|block| block.tables.load(Acquire) == 0) && !self.log.is_on()
    }

    /// Maps `gva` by one entry of `page`, a table at `LEVEL` in `role`. False if it takes small
    /// ones, in a DIRECT table.
    ///
    /// # Errors
    /// [`Failed`].
    #[cold]
    pub(crate) fn map_large<const LEVEL: u8>(
        &self,
        vcpu: &mut VcpuMmu,
        page: PageId,
        role: Role,
        gva: Gva,
        walk: &Walk<'_>,
    ) -> Result<bool, Failed> {
        let gfn = first(walk.gfn(gva), LEVEL);
        let allowed = LEVEL <= self.config.largest && self.may_be_large(LEVEL, gfn);
        let Some(hpa) = self.env.host_block(gfn, LEVEL).filter(|_| allowed) else {
            return Ok(false);
        };
        let value = if role.contains(Role::DIRECT) {
            direct_value(role, hpa)
        } else {
            leaf_value(role, walk.entry(LEVEL), hpa)
        };
        let value = Spte(value.0 | PS);
        let target = self.target(EntryRef::new(page, gva.index(LEVEL)), gfn);
        let guest = walk.step(LEVEL).ok_or(Failed::Retry)?;
        let now = Spte(target.entry.load(Acquire));
        if now == Spte::ABSENT {
            match self.install_absent::<LEVEL>(vcpu, target, value, || guest.still_true()) {
                Ok(()) => vcpu.stats.large_fills += 1,
                // No memory for one reference more: small entries have their own.
                Err(Failed::NoMemory) => return Ok(false),
                Err(failed) => return Err(failed),
            }
        } else if now.present() && !now.is_large() {
            // Small entries that are not needed any more, or another table.
            self.zap(target.at, now);
            return Err(Failed::Retry);
        } else {
            self.change::<LEVEL>(vcpu, target, now, value, guest)?;
        }
        Ok(true)
    }

    /// Brings large entry `at`, in a table at `level` in `role`, back to what `guest` allows now.
    #[cold]
    pub(crate) fn sync_large(&self, at: EntryRef, now: Spte, role: Role, guest: GuestPte) {
        let level = role.level();
        let same = guest.has(P | A)
            && guest.is_large(level)
            && (guest.has(U) || !role.contains(Role::USER_ONLY))
            && !self.config.paging.is_reserved(guest, level)
            && self.env.host_block(first(guest.gfn(), level), level) == Some(now.hpa());
        if !same {
            self.zap(at, now);
            return;
        }
        let want = leaf_value(role, guest, now.hpa());
        if (want.0 ^ now.0) & (W | NX) != 0 {
            // Rare: the next access brings it back.
            self.zap(at, now);
        }
    }
}
