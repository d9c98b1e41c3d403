//! Walks the guest's own page tables.
//! May: guest-memory. Context: run-loop, irq-off. Input: guest-controlled; tables may change
//! under the walk, so each entry is loaded once and kept.

use crate::{
    env::GuestMemory,
    fault::Access,
    pte::{A, D, GuestPte, NX, U, W},
};
use pv_abi::{
    addr::{Gfn, Gpa, Gva},
    event::pf,
};

/// Levels of a guest table tree. Five-level paging is not offered.
pub const LEVELS: u8 = 4;

/// What a walk found: the entries it went through and where they lead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    /// Where each entry lies; index `level - 1`.
    pub at: [Gpa; LEVELS as usize],
    /// Its value after A and D were set; index `level - 1`. Valid from `leaf` up.
    pub entry: [GuestPte; LEVELS as usize],
    /// Level of the leaf: 1, or 2 and 3 for large pages.
    pub leaf: u8,
    /// U of every entry.
    pub user: bool,
    /// W of every entry.
    pub writable: bool,
    /// NX of no entry.
    pub executable: bool,
}

impl Walk {
    /// The entry at `level`.
    #[must_use]
    pub const fn entry(&self, level: u8) -> GuestPte {
        self.entry[level as usize - 1]
    }

    /// Where the entry at `level` lies.
    #[must_use]
    pub const fn at(&self, level: u8) -> Gpa {
        self.at[level as usize - 1]
    }

    /// The guest frame that `gva` lands in.
    #[must_use]
    pub const fn gfn(&self, gva: Gva) -> Gfn {
        let pages = 1u64 << (9 * (self.leaf as u32 - 1));
        Gfn((self.entry(self.leaf).gfn().0 & !(pages - 1)) | (gva.0 >> 12 & (pages - 1)))
    }

    /// True if every entry still reads as walked, A and D aside.
    pub fn still_true(&self, memory: &impl GuestMemory) -> bool {
        (self.leaf..=LEVELS).all(|level| {
            memory
                .load(self.at(level))
                .is_some_and(|now| self.entry(level).same_mapping(GuestPte(now)))
        })
    }
}

/// Why a walk ended without a translation: the error code of the #PF to reflect, without the
/// bits that say what the access was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied(pub u64);

impl Denied {
    const NOT_PRESENT: Self = Self(0);
    const PROTECTION: Self = Self(pf::PRESENT);
    const RESERVED: Self = Self(pf::PRESENT | pf::RESERVED);
}

/// Rules of the guest's paging that do not come from its tables.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    /// Width of a guest-physical address.
    pub physical_bits: u32,
    /// Supervisor mode may not execute user pages.
    pub smep: bool,
}

/// Translates `gva` under the tables at `root` for `access`, setting A bits on the way and the D
/// bit for a write (rule I5).
///
/// # Errors
/// [`Denied`] when the guest's tables forbid it.
#[inline]
pub fn walk(
    memory: &impl GuestMemory,
    root: Gfn,
    gva: Gva,
    access: Access,
    paging: Paging,
) -> Result<Walk, Denied> {
    'again: loop {
        let mut walk = Walk { user: true, writable: true, executable: true, ..Walk::default() };
        let mut table = root;
        let mut level = LEVELS;
        loop {
            let at = table.gpa().offset(8 * gva.index(level) as u64);
            let entry = GuestPte(memory.load(at).ok_or(Denied::NOT_PRESENT)?);
            if !entry.present() {
                return Err(Denied::NOT_PRESENT);
            }
            if entry.has_reserved(level, paging.physical_bits) {
                return Err(Denied::RESERVED);
            }
            walk.at[level as usize - 1] = at;
            walk.entry[level as usize - 1] = entry;
            walk.user &= entry.has(U);
            walk.writable &= entry.has(W);
            walk.executable &= !entry.has(NX);
            if level == 1 || entry.is_large(level) {
                break;
            }
            table = entry.gfn();
            level -= 1;
        }
        walk.leaf = level;

        let permitted = (walk.user || !access.user)
            && (walk.writable || !access.write)
            && (walk.executable || !access.fetch)
            && !(paging.smep && access.fetch && !access.user && walk.user);
        if !permitted {
            return Err(Denied::PROTECTION);
        }
        for level in walk.leaf..=LEVELS {
            let dirty = if level == walk.leaf && access.write { D } else { 0 };
            let entry = walk.entry(level);
            let marked = GuestPte(entry.0 | A | dirty);
            if marked != entry && !memory.compare_exchange(walk.at(level), entry.0, marked.0) {
                continue 'again;
            }
            walk.entry[level as usize - 1] = marked;
        }
        return Ok(walk);
    }
}
