//! Tables shadowed anew by several vCPUs, each for a process of its own.

use super::Phased;
use crate::{
    bed::{BITS, DATA, Page, SIZE, map},
    design::{Design, READ},
    guest::Tables,
    host::Host,
};
use pv_abi::addr::{Gfn, Gva};
use shadow_mmu::Outcome;

/// Tables of each process.
const TABLES: u64 = 128;
/// Pages that a table maps.
const SPAN: u64 = 512;

/// Processes whose tables come and go, on MMU `M`.
#[derive(Debug)]
pub struct NewTables<M: Design> {
    mmu: M,
    /// Each vCPU's process, and an empty one to drop it from.
    roots: Vec<[Gfn; 2]>,
    pages: Vec<Vec<Page>>,
}

impl<M: Design> NewTables<M> {
    /// Work for up to `threads` threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let host = Host::new(SIZE);
        let mut tables = Tables::new(&host);
        let (mut roots, mut pages) = (Vec::new(), Vec::new());
        for index in 0..threads as u64 {
            let pair = [(); 2].map(|()| tables.root(&host));
            let range = (Gva(0), TABLES, SPAN);
            pages.push(map(&mut tables, &host, pair[0], range, BITS, DATA + index * TABLES));
            roots.push(pair);
        }
        Self { mmu: M::new(host, threads), roots, pages }
    }

    fn load(&self, vcpu: &mut M::Vcpu, root: Gfn) {
        assert!(self.mmu.load_root(vcpu, root), "a root is loaded");
        self.mmu.entering(vcpu);
    }
}

impl<M: Design> Phased for NewTables<M> {
    type Lane = (usize, M::Vcpu);
    /// Faults, one for each table; the end of the process.
    const PHASES: usize = 2;

    fn lane(&self, index: usize, _: usize) -> Self::Lane {
        let mut vcpu = self.mmu.vcpu(index);
        self.load(&mut vcpu, self.roots[index][0]);
        (index, vcpu)
    }

    fn phase(&self, (index, vcpu): &mut Self::Lane, phase: usize) -> u64 {
        let [own, other] = self.roots[*index];
        if phase == 0 {
            for page in &self.pages[*index] {
                let outcome = self.mmu.fault(vcpu, page.gva, READ);
                assert!(outcome == Outcome::Mapped, "a fault at {} gave {outcome:?}", page.gva);
                self.mmu.entering(vcpu);
            }
        } else {
            self.load(vcpu, other);
            self.mmu.drop_root(own);
        }
        TABLES
    }

    fn restore(&self, (index, vcpu): &mut Self::Lane) {
        self.load(vcpu, self.roots[*index][0]);
        self.mmu.reclaim();
        self.mmu.entering(vcpu);
    }

    fn end(&self, (_, vcpu): Self::Lane) {
        self.mmu.end(vcpu);
    }
}
