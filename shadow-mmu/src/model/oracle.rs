//! What the guest's tables allow, by a walk of its own, and what they have allowed since a flush.

use super::World;
use crate::{env::GuestMemory, fault::Access};
use pv_abi::addr::{Gfn, Gpa, Gva};
use std::{collections::BTreeMap, vec::Vec};

/// A translation as the guest's tables give it. A and D of every entry count: clearing them is
/// a change that a TLB may not have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    pub gfn: u64,
    pub user: bool,
    pub write: bool,
    pub fetch: bool,
    pub accessed: bool,
    pub dirty: bool,
}

/// Bits by number, so that this walk shares nothing with the one under test.
fn bit(entry: u64, number: u32) -> bool {
    entry >> number & 1 == 1
}

/// Reads `gva`'s translation out of the tables at `root`.
pub fn walk(world: &World, root: Gfn, gva: Gva) -> Option<Translation> {
    if !gva.is_canonical() || (256..272).contains(&gva.index(4)) {
        return None;
    }
    let mut t = Translation {
        gfn: root.0,
        user: true,
        write: true,
        fetch: true,
        accessed: true,
        dirty: false,
    };
    for level in (1..=4u32).rev() {
        let index = gva.0 >> (12 + 9 * (level - 1)) & 511;
        let entry = world.load(Gpa((t.gfn << 12) + 8 * index))?;
        let large = (level == 2 || level == 3) && bit(entry, 7);
        let reserved = entry >> 40 & 0xfff != 0
            || level == 4 && bit(entry, 7)
            || large && entry >> 13 & ((1 << (9 * (level - 1) - 1)) - 1) != 0;
        if !bit(entry, 0) || reserved {
            return None;
        }
        t.user &= bit(entry, 2);
        t.write &= bit(entry, 1);
        t.fetch &= !bit(entry, 63);
        t.accessed &= bit(entry, 5);
        t.dirty = bit(entry, 6);
        t.gfn = entry >> 12 & 0xff_ffff_ffff;
        if large {
            let pages = 1 << (9 * (level - 1));
            t.gfn = t.gfn & !(pages - 1) | gva.0 >> 12 & (pages - 1);
            break;
        }
    }
    Some(t)
}

impl Translation {
    pub fn permits(&self, access: Access, smep: bool) -> bool {
        (self.user || !access.contains(Access::USER))
            && (self.write || !access.contains(Access::WRITE))
            && (self.fetch || !access.contains(Access::FETCH))
            && !(smep
                && access.contains(Access::FETCH)
                && !access.contains(Access::USER)
                && self.user)
    }
}

/// For each address of the test, every translation since its last flush.
#[derive(Debug, Default)]
pub struct Oracle {
    allowed: BTreeMap<u64, Vec<Option<Translation>>>,
}

impl Oracle {
    pub fn new(addresses: &[Gva]) -> Self {
        Self { allowed: addresses.iter().map(|gva| (gva.0, Vec::new())).collect() }
    }

    /// Looks at `gva` as well.
    pub fn watch(&mut self, gva: Gva) {
        self.allowed.entry(gva.0).or_default();
    }

    /// The tables may have changed: what they say now counts as well.
    pub fn observe(&mut self, world: &World, root: Gfn) {
        for (&gva, allowed) in &mut self.allowed {
            let now = walk(world, root, Gva(gva));
            if !allowed.contains(&now) {
                allowed.push(now);
            }
        }
    }

    /// The addresses for which `of` holds are flushed: only what the tables say now counts.
    pub fn flush(&mut self, world: &World, root: Gfn, of: impl Fn(Gva) -> bool) {
        for (&gva, allowed) in &mut self.allowed {
            if of(Gva(gva)) {
                *allowed = std::vec![walk(world, root, Gva(gva))];
            }
        }
    }

    /// True if `access` to `gva` may reach `gfn`.
    pub fn may_reach(&self, gva: Gva, access: Access, gfn: Gfn, smep: bool) -> bool {
        self.history(gva).iter().flatten().any(|t| t.gfn == gfn.0 && t.permits(access, smep))
    }

    /// Every translation that counts for `gva`.
    pub fn history(&self, gva: Gva) -> &[Option<Translation>] {
        &self.allowed[&gva.page().0]
    }
}
