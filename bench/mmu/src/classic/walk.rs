//! Walks the guest's tables, one load an entry, and sets A and D.

use pv_abi::addr::{Gfn, Gva};
use shadow_mmu::{
    Access, GuestMemory,
    pte::{A, D, GuestPte, NX, P, U, W},
    walk::Paging,
};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire},
};

/// Error bits of a fault: the page is present; an entry has a reserved bit set.
const PRESENT: u64 = 1;
const RESERVED: u64 = 8;
/// Bits of an entry that leads nowhere.
const NOTHING: GuestPte = GuestPte(0);

/// The entries on the way to an address, by level less one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    entries: [GuestPte; 4],
    /// U of every entry.
    pub(super) user: bool,
}

impl Walk {
    #[inline(always)]
    pub(super) const fn entry(&self, level: u8) -> GuestPte {
        self.entries[level as usize - 1]
    }
}

/// Translates `gva` for `access`.
///
/// # Errors
/// The error code of the guest's fault.
#[inline(always)]
pub(super) fn walk(
    memory: &impl GuestMemory,
    root: Gfn,
    gva: Gva,
    access: Access,
    paging: Paging,
) -> Result<Walk, u64> {
    let describe = access.bits();
    'again: loop {
        let mut slots: [Option<&AtomicU64>; 4] = [None; 4];
        let (mut entries, mut table) = ([NOTHING; 4], root);
        let (mut every, mut any) = (!0, 0);
        for level in [4, 3, 2, 1] {
            let page = memory.table_at(table).ok_or(describe)?;
            let slot = &page.0[gva.index(level)];
            let entry = GuestPte(slot.load(Acquire));
            if !entry.present() {
                return Err(describe);
            }
            if paging.is_reserved(entry, level) {
                return Err(describe | PRESENT | RESERVED);
            }
            assert!(!entry.is_large(level), "the baselines know no large pages");
            (slots[level as usize - 1], entries[level as usize - 1]) = (Some(slot), entry);
            (every, any, table) = (every & entry.0, any | entry.0, entry.gfn());
        }
        let needed = P | access.bits() & (W | U);
        if every & needed != needed || access.contains(Access::FETCH) && any & NX != 0 {
            return Err(describe | PRESENT);
        }
        let dirty = if access.contains(Access::WRITE) { D } else { 0 };
        if every & A != 0 && entries[0].has(dirty) {
            return Ok(Walk { entries, user: every & U != 0 });
        }
        for (index, slot) in slots.into_iter().enumerate() {
            let old = entries[index].0;
            let new = old | A | if index == 0 { dirty } else { 0 };
            let Some(slot) = slot.filter(|_| new != old) else { continue };
            if slot.compare_exchange(old, new, AcqRel, Acquire).is_err() {
                continue 'again;
            }
            entries[index] = GuestPte(new);
        }
        return Ok(Walk { entries, user: every & U != 0 });
    }
}
