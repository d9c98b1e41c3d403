//! A VM to measure on: one MMU, one vCPU, and processes whose tables are laid out for a purpose.

use crate::{
    design::Design,
    guest::{Tables, USER_PAGE},
    host::{Host, Size},
};
use pv_abi::addr::{Gfn, Gva};
use shadow_mmu::{Access, Outcome};

/// 1 GiB of guest memory, a sixty-fourth of it for tables.
pub const SIZE: Size = Size { backed: 4096, frames: 1 << 18, pool: 4096 };
/// Pages between two mapped ones, so that a fault finds no neighbours to fill.
pub const STRIDE: u64 = 16;
/// First data frame.
pub const DATA: u64 = SIZE.backed;

/// A user page: where, and what is behind it.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Where it is mapped.
    pub gva: Gva,
    /// What is behind it.
    pub gfn: Gfn,
}

/// The VM.
#[derive(Debug)]
pub struct Bed<M: Design> {
    /// The MMU.
    pub mmu: M,
    /// The vCPU, with `root` loaded.
    pub vcpu: M::Vcpu,
    /// Frames for tables.
    pub tables: Tables,
    /// The process that is loaded.
    pub root: Gfn,
}

impl<M: Design> Bed<M> {
    /// A VM with one empty process, which is loaded.
    ///
    /// # Panics
    /// If the root cannot be loaded.
    #[must_use]
    pub fn new() -> Self {
        let host = Host::new(SIZE);
        let mut tables = Tables::new(&host);
        let root = tables.root(&host);
        let mmu = M::new(host, 1);
        let mut vcpu = mmu.vcpu(0);
        assert!(mmu.load_root(&mut vcpu, root));
        mmu.entering(&vcpu);
        Self { mmu, vcpu, tables, root }
    }

    /// Maps `count` pages from `start` on, `stride` pages apart, with `bits`.
    pub fn map(&mut self, start: Gva, count: u64, stride: u64, bits: u64) -> Vec<Page> {
        map(&mut self.tables, self.mmu.host(), self.root, (start, count, stride), bits, DATA)
    }

    /// A fault that must end as `outcome`.
    ///
    /// # Panics
    /// If it does not.
    #[inline]
    pub fn fault(&mut self, gva: Gva, access: Access, outcome: Outcome) {
        let got = self.mmu.fault(&mut self.vcpu, gva, access);
        assert!(got == outcome, "a fault at {gva} gave {got:?}");
        self.mmu.entering(&self.vcpu);
    }
}

impl<M: Design> Default for Bed<M> {
    fn default() -> Self {
        Self::new()
    }
}

/// Maps `count` pages from `start` on, `stride` pages apart, to the frames from `frame` on.
pub fn map(
    tables: &mut Tables,
    host: &Host,
    root: Gfn,
    (start, count, stride): (Gva, u64, u64),
    bits: u64,
    frame: u64,
) -> Vec<Page> {
    (0..count)
        .map(|n| {
            let page = Page { gva: start.offset((n * stride) << 12), gfn: Gfn(frame + n) };
            tables.map(host, root, page.gva, page.gfn, bits);
            page
        })
        .collect()
}

/// Bits of the pages that most benchmarks map.
pub const BITS: u64 = USER_PAGE;
