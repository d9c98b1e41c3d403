//! Walks the guest's own page tables.
//! May: guest-memory. Context: run-loop, irq-off. Input: guest-controlled; tables may change
//! under the walk, so each entry is loaded once and kept.

use crate::{
    dirty::DirtyLog,
    env::GuestMemory,
    fault::Access,
    large::{first, frames},
    mutant::{Mutant, planted},
    primitive::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
    pte::{A, ADDRESS, D, GuestPte, NX, P, PS, U},
};
use pv_abi::{
    addr::{Gfn, Gva},
    event::pf,
};

/// Levels of a guest table tree. Five-level paging is not offered.
pub const LEVELS: u8 = 4;

/// What a walk found: the entries it went through and where they lead. Index `level - 1`, valid
/// from `leaf` up.
#[derive(Clone, Copy, Debug)]
pub struct Walk<'m> {
    /// Where each entry lies.
    slots: [Option<&'m AtomicU64>; LEVELS as usize],
    /// Its value, after A and D were set.
    entries: [GuestPte; LEVELS as usize],
    /// Level of the leaf: 1, or 2 and 3 for large pages.
    pub leaf: u8,
    /// U of every entry.
    pub user: bool,
}

impl Walk<'_> {
    /// No walk yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: [None; LEVELS as usize],
            entries: [GuestPte(0); LEVELS as usize],
            leaf: 0,
            user: false,
        }
    }

    /// The entry that decides at `level`: its own, or that of the large page above it.
    #[inline(always)]
    #[must_use]
    pub fn entry(&self, level: u8) -> GuestPte {
        self.entries[level.max(self.leaf) as usize - 1]
    }

    /// The guest frame that `gva` lands in.
    #[inline(always)]
    #[must_use]
    pub fn gfn(&self, gva: Gva) -> Gfn {
        let within = gva.0 >> 12 & (frames(self.leaf) - 1);
        Gfn(first(self.entry(self.leaf).gfn(), self.leaf).0 | within)
    }

    /// The entry that decides at `level`, and where it lies; nothing where no walk has been.
    #[inline(always)]
    pub(crate) fn step(&self, level: u8) -> Option<Step<'_>> {
        let index = level.max(self.leaf) as usize - 1;
        self.slots[index].map(|slot| Step { slot, entry: self.entries[index] })
    }
}

/// A guest entry as it was walked, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'m> {
    pub(crate) slot: &'m AtomicU64,
    pub(crate) entry: GuestPte,
}

impl Step<'_> {
    /// True if the entry still reads as walked, or has got A or D since. One that lost them, and
    /// was flushed, must be marked again.
    #[inline(always)]
    pub(crate) fn still_true(self) -> bool {
        let (now, then) = (self.slot.load(Acquire), self.entry.0);
        if planted(Mutant::LostBitPasses) {
            return (now ^ then) & !(A | D) == 0;
        }
        (now ^ then) & !(A | D) | then & !now == 0
    }
}

impl Default for Walk<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a walk ended without a translation: the error code of the #PF to reflect, without the
/// bits that say what the access was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied(pub u64);

impl Denied {
    pub(crate) const NOT_PRESENT: Self = Self(0);
    pub(crate) const PROTECTION: Self = Self(pf::PRESENT);
    const RESERVED: Self = Self(pf::PRESENT | pf::RESERVED);
}

/// Rules of the guest's paging that do not come from its tables.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    /// Bits that are reserved in every entry: addresses beyond the guest's physical width.
    reserved: u64,
    /// Supervisor mode may not execute user pages.
    pub smep: bool,
}

impl Paging {
    /// Rules for guest-physical addresses of `physical_bits`, with or without SMEP.
    #[must_use]
    pub const fn new(physical_bits: u32, smep: bool) -> Self {
        Self { reserved: ADDRESS & !((1 << physical_bits) - 1), smep }
    }

    /// True for an entry above level 1 that links a table, and has no bit that would be reserved.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn is_link(self, entry: GuestPte) -> bool {
        entry.0 & (P | PS | self.reserved) == P
    }

    /// True when a present entry at `level` has a bit set that the architecture reserves.
    #[inline(always)]
    #[must_use]
    pub const fn is_reserved(self, entry: GuestPte, level: u8) -> bool {
        entry.0 & self.reserved != 0 || level > 1 && entry.has_bad_size(level)
    }
}

/// Translates `gva` under the tables at `root` for `access`, setting A bits on the way and the D
/// bit for a write (rule I5), which `log` is told. `walk` is new, and valid if the result is.
///
/// # Errors
/// [`Denied`] when the guest's tables forbid it.
#[inline(always)]
pub(crate) fn walk<'m>(
    memory: &'m impl GuestMemory,
    root: Gfn,
    gva: Gva,
    access: Access,
    paging: Paging,
    log: &DirtyLog,
    walk: &mut Walk<'m>,
) -> Result<(), Denied> {
    loop {
        let (every, any) = read(memory, root, gva, paging, walk)?;
        let needed = access.needed();
        walk.user = every & U != 0;
        let never = access.contains(Access::FETCH)
            && (any & NX != 0 || paging.smep && !access.contains(Access::USER) && walk.user);
        if every & needed != needed || never {
            return Err(Denied::PROTECTION);
        }
        let dirty = !walk.entry(walk.leaf).has(access.dirties());
        if every & A != 0 && !dirty || mark(walk, root, dirty, log) {
            return Ok(());
        }
        *walk = Walk::new();
    }
}

/// Reads the entries on the way to `gva`; returns the bits that all and that any of them have.
#[inline(always)]
fn read<'m>(
    memory: &'m impl GuestMemory,
    root: Gfn,
    gva: Gva,
    paging: Paging,
    walk: &mut Walk<'m>,
) -> Result<(u64, u64), Denied> {
    let mut seen = Seen { table: root, every: !0, any: 0 };
    // Unrolled: this is the hottest loop of L1, and each level's shifts become constants.
    let leaf = read_level::<4>(memory, gva, paging, walk, &mut seen)?
        || read_level::<3>(memory, gva, paging, walk, &mut seen)?
        || read_level::<2>(memory, gva, paging, walk, &mut seen)?
        || read_level::<1>(memory, gva, paging, walk, &mut seen)?;
    debug_assert!(leaf);
    Ok((seen.every, seen.any))
}

/// Where a walk is, and the bits of the entries behind it.
struct Seen {
    table: Gfn,
    every: u64,
    any: u64,
}

/// Reads the entry at `LEVEL`; true if it is the leaf.
#[inline(always)]
fn read_level<'m, const LEVEL: u8>(
    memory: &'m impl GuestMemory,
    gva: Gva,
    paging: Paging,
    walk: &mut Walk<'m>,
    seen: &mut Seen,
) -> Result<bool, Denied> {
    let page = memory.table_at(seen.table).ok_or(Denied::NOT_PRESENT)?;
    let slot = &page.0[gva.index(LEVEL)];
    let entry = GuestPte(slot.load(Acquire));
    if !entry.present() {
        return Err(Denied::NOT_PRESENT);
    }
    if paging.is_reserved(entry, LEVEL) {
        return Err(Denied::RESERVED);
    }
    walk.slots[LEVEL as usize - 1] = Some(slot);
    walk.entries[LEVEL as usize - 1] = entry;
    walk.leaf = LEVEL;
    seen.every &= entry.0;
    seen.any |= entry.0;
    seen.table = entry.gfn();
    Ok(LEVEL == 1 || entry.is_large(LEVEL))
}

/// Sets A, and D in the leaf, in the entries walked below `root`; false if one has changed.
#[cold]
fn mark(walk: &mut Walk<'_>, root: Gfn, dirty: bool, log: &DirtyLog) -> bool {
    for level in walk.leaf..=LEVELS {
        let index = level as usize - 1;
        let dirty = if level == walk.leaf && dirty { D } else { 0 };
        let entry = walk.entries[index].0;
        let lost = if level == walk.leaf { Mutant::LostA } else { Mutant::LostUpperA };
        let marked = entry | dirty | if planted(lost) { 0 } else { A };
        let Some(slot) = walk.slots[index] else { return false };
        if marked != entry {
            if planted(Mutant::BlindMark) {
                slot.fetch_or(marked & (A | D), AcqRel);
            } else if slot.compare_exchange(entry, marked, AcqRel, Relaxed).is_err() {
                return false;
            }
            let above = walk.entries.get(index + 1);
            if !planted(Mutant::LogUntold) {
                log.wrote(above.map_or(root, |entry| entry.gfn()));
            }
        }
        walk.entries[index] = GuestPte(marked);
    }
    true
}
