//! What a guest kernel does when a process forks, ends, or takes turns.

use super::Runner;
use crate::{
    bed::{BITS, Bed, DATA, Page},
    design::{Design, READ, WRITE, guest_store},
    guest::{LINK, READ_ONLY, slot},
};
use pv_abi::addr::{Gfn, Gpa, Gva};
use shadow_mmu::{
    Outcome,
    pte::{A, W},
};
use std::time::{Duration, Instant};

/// Pages of the process.
const PAGES: u64 = 1000;
/// Pages that the child reads, and writes.
const READS: usize = 48;
const WRITES: usize = 16;
/// Frames that the child copies its pages to.
const COPIES: u64 = DATA + 0x1_0000;

/// A parent, and the frames of its child's tables, root first.
struct Family<M: Design> {
    bed: Bed<M>,
    pages: Vec<Page>,
    parent: Vec<Gpa>,
    child: [Gfn; 5],
}

impl<M: Design> Family<M> {
    fn new() -> Self {
        let mut bed = Bed::<M>::new();
        let pages = bed.map(Gva(0), PAGES, 1, BITS);
        let (host, root) = (bed.mmu.host(), bed.root);
        let parent: Vec<Gpa> = pages
            .iter()
            .map(|page| slot(bed.tables.leaf(host, root, page.gva), page.gva.index(1)))
            .collect();
        let child = [(); 5].map(|()| bed.tables.take(host));
        let mut family = Self { bed, pages, parent, child };
        family.restore();
        family
    }

    fn store(&mut self, at: Gpa, value: u64) {
        guest_store(&self.bed.mmu, &mut self.bed.vcpu, at, value);
    }

    fn child_entry(&self, page: usize) -> Gpa {
        slot(self.child[3 + page / 512], page % 512)
    }

    fn load(&mut self, root: Gfn) {
        assert!(self.bed.mmu.load_root(&mut self.bed.vcpu, root));
        self.bed.mmu.entering(&self.bed.vcpu);
    }

    fn flush(&mut self) {
        self.bed.mmu.flush(&mut self.bed.vcpu);
        self.bed.mmu.entering(&self.bed.vcpu);
    }

    /// The parent has all its pages to itself, and has touched what it will touch again.
    fn restore(&mut self) {
        for index in 0..self.pages.len() {
            self.store(self.parent[index], self.pages[index].gfn.gpa().0 | BITS);
        }
        self.flush();
        for index in (0..self.pages.len()).step_by(16) {
            self.bed.fault(self.pages[index].gva, WRITE, Outcome::Mapped);
        }
    }

    fn fork(&mut self) {
        let [root, level3, level2, first, second] = self.child;
        // Entries of the kernel's half are copied before anybody looks at the new root.
        self.bed.tables.link_kernel(self.bed.mmu.host(), root);
        self.store(root.gpa(), level3.gpa().0 | LINK);
        self.store(level3.gpa(), level2.gpa().0 | LINK);
        self.store(level2.gpa(), first.gpa().0 | LINK);
        self.store(level2.gpa().offset(8), second.gpa().0 | LINK);
        for index in 0..self.pages.len() {
            let shared = self.pages[index].gfn.gpa().0 | READ_ONLY;
            self.store(self.parent[index], shared);
            self.store(self.child_entry(index), shared & !A);
        }
        self.flush();
        self.load(root);
        for index in 0..READS {
            self.bed.fault(self.pages[index].gva, READ, Outcome::Mapped);
        }
        for index in READS..READS + WRITES {
            self.copy_on_write(index);
        }
    }

    /// The child's write to a shared page: the guest's fault, its new entry, and ours.
    fn copy_on_write(&mut self, index: usize) {
        let gva = self.pages[index].gva;
        let denied = Outcome::Reflect(WRITE.bits() | 1);
        self.bed.fault(gva, WRITE, denied);
        let copy = Gfn(COPIES + index as u64).gpa().0 | BITS;
        self.store(self.child_entry(index), copy);
        self.bed.mmu.flush_address(&mut self.bed.vcpu, gva);
        self.bed.fault(gva, WRITE, Outcome::Mapped);
    }

    fn exit(&mut self) {
        let [root, level3, level2, ..] = self.child;
        for index in 0..self.pages.len() {
            self.store(self.child_entry(index), 0);
        }
        self.flush();
        self.store(level2.gpa(), 0);
        self.store(level2.gpa().offset(8), 0);
        self.store(level3.gpa(), 0);
        self.store(root.gpa(), 0);
        self.flush();
        self.load(self.bed.root);
        self.bed.mmu.drop_root(root);
        self.bed.mmu.reclaim();
        self.bed.mmu.entering(&self.bed.vcpu);
    }

    /// One life of a child: how long its start took, and its end.
    fn round(&mut self) -> [Duration; 2] {
        let start = Instant::now();
        self.fork();
        let forked = Instant::now();
        self.exit();
        let ended = Instant::now();
        self.restore();
        [forked - start, ended - forked]
    }
}

fn rounds<M: Design + 'static, const PART: usize>() -> Runner
where
    M::Vcpu: 'static,
{
    const { assert!(BITS & W != 0) };
    let mut family = Family::<M>::new();
    Box::new(move |n| (0..n).map(|_| family.round()[PART]).sum())
}

pub(super) fn fork<M: Design + 'static>() -> Runner
where
    M::Vcpu: 'static,
{
    rounds::<M, 0>()
}

pub(super) fn exit<M: Design + 'static>() -> Runner
where
    M::Vcpu: 'static,
{
    rounds::<M, 1>()
}

pub(super) fn switch<M: Design + 'static>() -> Runner
where
    M::Vcpu: 'static,
{
    let mut bed = Bed::<M>::new();
    let other = bed.tables.root(bed.mmu.host());
    let roots = [bed.root, other];
    Box::new(move |n| {
        let start = Instant::now();
        for turn in 0..n {
            assert!(bed.mmu.load_root(&mut bed.vcpu, roots[turn as usize & 1]));
            bed.mmu.entering(&bed.vcpu);
        }
        start.elapsed()
    })
}
