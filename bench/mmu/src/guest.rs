//! A guest's page tables: frames for them, a direct map of those frames, and entries.
//!
//! The guest maps all frames that may hold tables in slot 273, as Linux maps its memory, so that
//! its stores to page tables go through shadow entries and can be tracked.

use crate::host::Host;
use pv_abi::addr::{Gfn, Gpa, Gva};
use shadow_mmu::pte::{A, ADDRESS, D, NX, P, U, W};
use std::sync::atomic::Ordering::Relaxed;

/// Where the guest maps the frames of its tables.
pub const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// The slot of the root that maps them.
const DIRECT_SLOT: usize = 273;
/// Bits of an entry that links a table of user space.
pub const LINK: u64 = P | W | U | A;
/// Bits of a user page that was written.
pub const USER_PAGE: u64 = P | W | U | A | D | NX;
/// Bits of a user page that may only be read.
pub const READ_ONLY: u64 = P | U | A | NX;
/// Bits of the kernel's own pages.
const KERNEL_PAGE: u64 = P | W | A | D | NX;
const KERNEL_LINK: u64 = P | W | A;

/// Hands out the frames that may hold tables.
#[derive(Debug)]
pub struct Tables {
    next: u64,
    direct: Gfn,
}

impl Tables {
    /// All of `host`'s backed frames; those of the direct map are taken at once.
    ///
    /// # Panics
    /// If there are more frames than one level-2 table can map.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        let leaves = host.backed().div_ceil(512);
        assert!(leaves <= 512, "the direct map has one level-2 table");
        let (direct, level2, first_leaf) = (Gfn(1), Gfn(2), 3);
        host.store(direct.gpa(), level2.gpa().0 | KERNEL_LINK);
        for leaf in 0..leaves {
            let table = Gfn(first_leaf + leaf);
            host.store(level2.gpa().offset(8 * leaf), table.gpa().0 | KERNEL_LINK);
        }
        for frame in 0..host.backed() {
            let table = Gfn(first_leaf + frame / 512);
            let entry = Gfn(frame).gpa().0 | KERNEL_PAGE;
            host.store(table.gpa().offset(8 * (frame % 512)), entry);
        }
        Self { next: first_leaf + leaves, direct }
    }

    /// A frame for one more table.
    ///
    /// # Panics
    /// If none is left.
    pub fn take(&mut self, host: &Host) -> Gfn {
        assert!(self.next < host.backed(), "the benchmark needs more frames for tables");
        self.next += 1;
        Gfn(self.next - 1)
    }

    /// A root table that maps nothing but the direct map.
    pub fn root(&mut self, host: &Host) -> Gfn {
        let root = self.take(host);
        self.link_kernel(host, root);
        root
    }

    /// Links the direct map in `root`.
    pub fn link_kernel(&self, host: &Host, root: Gfn) {
        host.store(slot(root, DIRECT_SLOT), self.direct.gpa().0 | KERNEL_LINK);
    }

    /// The leaf table for `gva` below `root`, made with all tables on the way if need be.
    pub fn leaf(&mut self, host: &Host, root: Gfn, gva: Gva) -> Gfn {
        let mut table = root;
        for level in [4, 3, 2] {
            let at = slot(table, gva.index(level));
            if host.entry(at).load(Relaxed) == 0 {
                host.store(at, self.take(host).gpa().0 | LINK);
            }
            table = Gfn((host.entry(at).load(Relaxed) & ADDRESS) >> 12);
        }
        table
    }

    /// Maps `gva` to `gfn` below `root`; returns where the entry lies.
    pub fn map(&mut self, host: &Host, root: Gfn, gva: Gva, gfn: Gfn, bits: u64) -> Gpa {
        let at = slot(self.leaf(host, root, gva), gva.index(1));
        host.store(at, gfn.gpa().0 | bits);
        at
    }
}

/// Where entry `index` of `table` lies.
#[must_use]
pub const fn slot(table: Gfn, index: usize) -> Gpa {
    table.gpa().offset(8 * index as u64)
}
