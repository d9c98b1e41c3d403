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

/// A table on the way to an address, and what the entries above it permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Table {
    gfn: u64,
    user: bool,
    write: bool,
    fetch: bool,
    accessed: bool,
}

/// Where an entry leads.
enum Next {
    Nowhere,
    Table(Table),
    Page(Translation),
}

impl Table {
    const fn root(gfn: Gfn) -> Self {
        Self { gfn: gfn.0, user: true, write: true, fetch: true, accessed: true }
    }

    /// Reads the entry for `gva` in this table of `level`.
    fn next(self, world: &World, gva: Gva, level: u32) -> Next {
        let index = gva.0 >> (12 + 9 * (level - 1)) & 511;
        let Some(entry) = world.load(Gpa((self.gfn << 12) + 8 * index)) else {
            return Next::Nowhere;
        };
        let large = (level == 2 || level == 3) && bit(entry, 7);
        let reserved = entry >> 40 & 0xfff != 0
            || level == 4 && bit(entry, 7)
            || large && entry >> 13 & ((1 << (9 * (level - 1) - 1)) - 1) != 0;
        if !bit(entry, 0) || reserved {
            return Next::Nowhere;
        }
        let gfn = entry >> 12 & 0xff_ffff_ffff;
        let user = self.user && bit(entry, 2);
        let write = self.write && bit(entry, 1);
        let fetch = self.fetch && !bit(entry, 63);
        let accessed = self.accessed && bit(entry, 5);
        if level > 1 && !large {
            return Next::Table(Self { gfn, user, write, fetch, accessed });
        }
        let pages = 1 << (9 * (level - 1));
        let gfn = gfn & !(pages - 1) | gva.0 >> 12 & (pages - 1);
        Next::Page(Translation { gfn, user, write, fetch, accessed, dirty: bit(entry, 6) })
    }
}

/// The guest may have no translation for `gva`, whatever its tables say.
fn is_off_limits(gva: Gva) -> bool {
    !gva.is_canonical() || (256..272).contains(&gva.index(4))
}

/// Reads `gva`'s translation out of the tables at `root`.
pub fn walk(world: &World, root: Gfn, gva: Gva) -> Option<Translation> {
    if is_off_limits(gva) {
        return None;
    }
    let mut table = Table::root(root);
    for level in (1..=4).rev() {
        match table.next(world, gva, level) {
            Next::Nowhere => return None,
            Next::Table(next) => table = next,
            Next::Page(found) => return Some(found),
        }
    }
    None
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

/// What counts for an address.
#[derive(Debug, Default)]
struct History {
    /// Tables that have been on the way, by level from 1.
    tables: [Vec<Table>; 4],
    /// Every translation; `None` if there was none.
    translations: Vec<Option<Translation>>,
}

fn add<T: PartialEq>(to: &mut Vec<T>, what: T) {
    if !to.contains(&what) {
        to.push(what);
    }
}

impl History {
    /// Reads every table that has been on the way to `gva`. A CPU caches each level on its own, so
    /// an old entry of an upper table leads on to new ones below.
    fn observe(&mut self, world: &World, root: Gfn, gva: Gva) {
        add(&mut self.translations, walk(world, root, gva));
        if is_off_limits(gva) {
            return;
        }
        add(&mut self.tables[3], Table::root(root));
        for level in (1..=4).rev() {
            for number in 0..self.tables[level - 1].len() {
                match self.tables[level - 1][number].next(world, gva, level as u32) {
                    Next::Nowhere => {}
                    Next::Table(next) => add(&mut self.tables[level - 2], next),
                    Next::Page(found) => add(&mut self.translations, Some(found)),
                }
            }
        }
    }
}

/// For each address of the test, what it may lead to since its last flush.
#[derive(Debug, Default)]
pub struct Oracle {
    allowed: BTreeMap<u64, History>,
}

impl Oracle {
    pub fn new(addresses: &[Gva]) -> Self {
        Self { allowed: addresses.iter().map(|gva| (gva.0, History::default())).collect() }
    }

    /// Looks at `gva` as well.
    pub fn watch(&mut self, gva: Gva) {
        self.allowed.entry(gva.0).or_default();
    }

    /// The tables may have changed: what they say now counts as well.
    pub fn observe(&mut self, world: &World, root: Gfn) {
        for (&gva, allowed) in &mut self.allowed {
            allowed.observe(world, root, Gva(gva));
        }
    }

    /// The addresses for which `of` holds are flushed: only what the tables say now counts.
    pub fn flush(&mut self, world: &World, root: Gfn, of: impl Fn(Gva) -> bool) {
        for (&gva, allowed) in &mut self.allowed {
            if of(Gva(gva)) {
                *allowed = History::default();
                allowed.observe(world, root, Gva(gva));
            }
        }
    }

    /// True if `access` to `gva` may reach `gfn`.
    pub fn may_reach(&self, gva: Gva, access: Access, gfn: Gfn, smep: bool) -> bool {
        self.history(gva).iter().flatten().any(|t| t.gfn == gfn.0 && t.permits(access, smep))
    }

    /// True if `access` to `gva` may reach something.
    pub fn may_succeed(&self, gva: Gva, access: Access, smep: bool) -> bool {
        self.history(gva).iter().flatten().any(|t| t.permits(access, smep))
    }

    /// Every translation that counts for `gva`.
    pub fn history(&self, gva: Gva) -> &[Option<Translation>] {
        &self.allowed[&gva.page().0].translations
    }
}
