//! The guest: where its tables and addresses lie, and how it starts out.

use crate::{
    api::{Gfn, Gva},
    bits::{A, D, NX, P, U, W},
    step::At,
    world::World,
};
use std::sync::atomic::Ordering::Relaxed;

/// Roots the guest loads.
pub const ROOTS: [Gfn; 3] = [Gfn(1), Gfn(2), Gfn(3)];
/// Tables of level 3: of the lower half twice, of the kernel's range once.
pub const LEVEL3: [Gfn; 3] = [Gfn(4), Gfn(5), Gfn(6)];
/// Tables of level 2, likewise.
pub const LEVEL2: [Gfn; 4] = [Gfn(7), Gfn(8), Gfn(9), Gfn(10)];
/// Leaf tables.
pub const LEVEL1: [Gfn; 6] = [Gfn(11), Gfn(12), Gfn(13), Gfn(14), Gfn(15), Gfn(16)];
/// Small data frames; with entries stored there, they may become tables too.
pub const DATA: [Gfn; 8] = [Gfn(0), Gfn(20), Gfn(21), Gfn(22), Gfn(23), Gfn(24), Gfn(25), Gfn(26)];
/// Frames whose content changes: all of the above are below.
pub const SMALL: u64 = 32;
/// First frames of the 2 MiB blocks that hold nothing but data.
pub const BLOCKS: [Gfn; 2] = [Gfn(512), Gfn(1024)];
/// Tables of the kernel's own map, which never change.
const FIXED: [Gfn; 3] = [Gfn(1536), Gfn(1537), Gfn(1538)];
/// Guest frames; there is no memory behind higher ones.
pub const FRAMES: u64 = 1552;
/// Physical address width.
pub const PHYSICAL_BITS: u32 = 40;

/// Entries that are ever stored: the rest of each table stays as it is.
pub const SLOTS: [usize; 7] = [0, 1, 2, 3, 5, 402, 511];
/// Root slot of the kernel's map of the small frames.
const DIRECT_SLOT: usize = 273;
/// Root slot of the kernel range whose tables are rewritten.
pub const KERNEL_SLOT: usize = 402;

/// Addresses that programs use: those that the tables are about, then the kernel's map.
#[derive(Clone, Debug)]
pub struct Addresses {
    all: Vec<Gva>,
    mapped: usize,
    /// Number of the 2 MiB region of each, and how many there are.
    regions: Vec<usize>,
    region_count: usize,
}

fn gva(slot: usize, level2: usize, level1: usize) -> Gva {
    Gva((slot as u64) << 39 | (level2 as u64) << 21 | (level1 as u64) << 12).canonicalized()
}

impl Addresses {
    /// Those of the guest.
    #[must_use]
    pub fn new() -> Self {
        let mut all = Vec::new();
        for slot in 0..2 {
            for (level2, level1) in
                [(0, 0), (0, 1), (0, 2), (0, 5), (0, 511), (1, 0), (1, 1), (1, 3)]
            {
                all.push(gva(slot, level2, level1));
            }
        }
        for (level2, level1) in [(0, 0), (0, 1), (0, 3), (1, 0)] {
            all.push(gva(KERNEL_SLOT, level2, level1));
        }
        let mapped = all.len();
        all.extend((0..SMALL).map(|frame| gva(DIRECT_SLOT, 0, frame as usize)));
        let mut starts: Vec<u64> = Vec::new();
        let regions = all
            .iter()
            .map(|gva| {
                let start = gva.0 >> 21;
                starts.iter().position(|&other| other == start).unwrap_or_else(|| {
                    starts.push(start);
                    starts.len() - 1
                })
            })
            .collect();
        Self { all, mapped, regions, region_count: starts.len() }
    }

    /// How many are not the kernel's own map.
    #[must_use]
    pub const fn mapped(&self) -> usize {
        self.mapped
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.all.len()
    }

    /// The address with this number.
    #[must_use]
    pub fn gva(&self, number: usize) -> Gva {
        self.all[number]
    }

    /// The number of the address at which the kernel sees small frame `gfn`.
    #[must_use]
    pub const fn direct(&self, gfn: Gfn) -> usize {
        self.mapped + gfn.0 as usize
    }

    /// Number of the 2 MiB region of an address.
    #[must_use]
    pub fn region(&self, number: usize) -> usize {
        self.regions[number]
    }

    /// How many regions there are.
    #[must_use]
    pub const fn regions(&self) -> usize {
        self.region_count
    }

    /// True if the address is in the lower half.
    #[must_use]
    pub fn is_lower(&self, number: usize) -> bool {
        self.all[number].index(4) < 256
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self::new()
    }
}

/// Links between tables that programs rewrite, as they are at first.
pub(crate) const FIRST_LINKS: usize = 18;

/// The link with this number, below [`FIRST_LINKS`].
pub(crate) fn first_link(number: usize) -> (At, u64) {
    let link = P | W | U | A;
    let kernel = P | W | A | D;
    let (gfn, slot, target, flags) = match (number / 9, number % 9) {
        (0, slot) => {
            let (root, slot) = (slot / 3, slot % 3);
            match slot {
                2 => (ROOTS[root], KERNEL_SLOT, LEVEL3[2], kernel),
                _ => (ROOTS[root], slot, LEVEL3[(root + slot) % 2], link),
            }
        }
        (_, of) => {
            let (tree, link_number) = (of / 3, of % 3);
            let flags = if tree == 2 { kernel } else { link };
            match link_number {
                2 => (LEVEL3[tree], 0, LEVEL2[tree], flags),
                slot => (LEVEL2[tree], slot, LEVEL1[2 * tree + slot], flags),
            }
        }
    };
    (At { gfn, slot }, target.gpa().0 | flags)
}

/// Builds the guest's first tables.
pub(crate) fn build(world: &World) {
    let store = |table: Gfn, slot: usize, value: u64| {
        if let Some(table) = world.table(table) {
            table.0[slot].store(value, Relaxed);
        }
    };
    for (at, value) in (0..FIRST_LINKS).map(first_link) {
        store(at.gfn, at.slot, value);
    }
    let kernel = P | W | A | D;
    for root in ROOTS {
        store(root, DIRECT_SLOT, FIXED[0].gpa().0 | kernel);
    }
    store(FIXED[0], 0, FIXED[1].gpa().0 | kernel);
    store(FIXED[1], 0, FIXED[2].gpa().0 | kernel);
    for frame in (0..SMALL).map(Gfn) {
        store(FIXED[2], frame.0 as usize, frame.gpa().0 | kernel | NX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_know_their_region_and_half() {
        let addresses = Addresses::new();
        assert_eq!(addresses.mapped(), 20);
        assert!(addresses.is_lower(15) && !addresses.is_lower(16));
        assert_eq!(addresses.region(0), addresses.region(4), "same 2 MiB");
        assert_ne!(addresses.region(4), addresses.region(5));
        assert_eq!(addresses.gva(addresses.direct(Gfn(3))).index(1), 3);
        assert_eq!(addresses.gva(addresses.direct(Gfn(3))).index(4), DIRECT_SLOT);
        assert!(addresses.gva(16).is_canonical());
    }
}
