//! The baselines are real: on random programs all three MMUs give the same answers, and after a
//! flush none of them maps what the guest's tables do not.

use mmu_bench::{
    baselines::{OneMutex, ReaderWriter},
    design::{Design, KERNEL_WRITE, READ, Roost, WRITE, guest_store, shadow_entry},
    guest::{LINK, READ_ONLY, Tables, USER_PAGE, slot},
    host::{Host, Size},
};
use pv_abi::addr::{Gfn, Gpa, Gva};
use shadow_mmu::{
    Access, GuestMemory, Outcome,
    pte::{A, GuestPte, W},
};
use std::sync::atomic::Ordering::Relaxed;

const SIZE: Size = Size { backed: 64, frames: 256, pool: 256 };
const DATA: u64 = SIZE.backed;
/// Pages of each address space that programs use: in three leaf tables.
const ADDRESSES: [u64; 8] =
    [0, 0x1000, 0x2000, 0x1f_f000, 0x20_0000, 0x20_5000, 0x4000_0000, 0x4000_1000];

/// A VM with two processes, which share a leaf table.
struct Vm<M: Design> {
    mmu: M,
    vcpu: M::Vcpu,
    roots: [Gfn; 2],
    loaded: usize,
    /// Where the entry for each address lies, by process.
    entries: [Vec<Gpa>; 2],
    /// Where the links of leaf tables lie, and what links them.
    links: Vec<(Gpa, u64)>,
}

impl<M: Design> Vm<M> {
    fn new() -> Self {
        let host = Host::new(SIZE);
        let mut tables = Tables::new(&host);
        let roots = [(); 2].map(|()| tables.root(&host));
        let first = tables.leaf(&host, roots[0], Gva(0));
        // The second process links the first one's table.
        tables.leaf(&host, roots[1], Gva(0));
        let level2 = walk(&host, roots[1], Gva(0), 2);
        host.store(level2, first.gpa().0 | LINK);
        let entries = roots.map(|root| {
            ADDRESSES
                .iter()
                .map(|&gva| slot(tables.leaf(&host, root, Gva(gva)), Gva(gva).index(1)))
                .collect()
        });
        let links = roots
            .iter()
            .flat_map(|&root| [0, 0x4000_0000].map(|gva| walk(&host, root, Gva(gva), 2)))
            .map(|at| (at, host.entry(at).load(Relaxed)))
            .collect();
        let mmu = M::new(host, 1);
        let mut vcpu = mmu.vcpu(0);
        assert!(mmu.load_root(&mut vcpu, roots[0]));
        Self { mmu, vcpu, roots, loaded: 0, entries, links }
    }

    /// Does one step of a program; what can be seen of it.
    fn step(&mut self, random: &mut fastrand::Rng) -> Option<Outcome> {
        let address = random.usize(..ADDRESSES.len());
        let gva = Gva(ADDRESSES[address]);
        match random.u32(..16) {
            0..8 => {
                let access: Access = random.choice([READ, WRITE, KERNEL_WRITE])?;
                return Some(self.mmu.fault(&mut self.vcpu, gva, access));
            }
            8..11 => {
                let bits = random.choice([USER_PAGE, READ_ONLY, READ_ONLY & !A, 0])?;
                let frame = DATA + random.u64(..8);
                let at = self.entries[random.usize(..2)][address];
                guest_store(&self.mmu, &mut self.vcpu, at, frame << 12 | bits);
            }
            11 => {
                let (at, link) = self.links[random.usize(..self.links.len())];
                let value = random.choice([link, link, link & !W, 0])?;
                guest_store(&self.mmu, &mut self.vcpu, at, value);
                // Until then links may be cached, and Roost's are.
                self.mmu.flush(&mut self.vcpu);
            }
            12 => {
                self.mmu.flush_address(&mut self.vcpu, gva);
                self.check(&[gva.0]);
            }
            13 => self.mmu.zap_frame(Gfn(DATA + random.u64(..8))),
            14 => {
                self.mmu.flush(&mut self.vcpu);
                self.check(&ADDRESSES);
            }
            _ => {
                let old = self.loaded;
                self.loaded = random.usize(..2);
                assert!(self.mmu.load_root(&mut self.vcpu, self.roots[self.loaded]));
                self.check(&ADDRESSES);
                if random.bool() && old != self.loaded {
                    self.mmu.drop_root(self.roots[old]);
                }
            }
        }
        self.mmu.entering(&self.vcpu);
        self.mmu.reclaim();
        None
    }

    /// What the shadow maps, the guest's tables map.
    fn check(&self, flushed: &[u64]) {
        check(&self.mmu, &self.vcpu, self.roots[self.loaded], flushed);
    }
}

fn check<M: Design>(mmu: &M, vcpu: &M::Vcpu, root: Gfn, flushed: &[u64]) {
    let (supervisor, user) = mmu.roots(vcpu);
    let host = mmu.host();
    for (&gva, shadow_root) in flushed.iter().flat_map(|gva| [(gva, supervisor), (gva, user)]) {
        let Some((_, shadow, write)) = shadow_entry(host, shadow_root, Gva(gva)) else { continue };
        let path = [4, 3, 2, 1]
            .map(|level| GuestPte(host.entry(walk(host, root, Gva(gva), level)).load(Relaxed)));
        assert!(path.iter().all(|entry| entry.present()), "{}: {gva:#x} is stale", M::NAME);
        assert!(path[3].has(A), "{}: {gva:#x} is mapped though A is clear", M::NAME);
        assert_eq!(host.guest_frame(shadow.hpa()), path[3].gfn(), "{}: {gva:#x}", M::NAME);
        assert!(!write || path.iter().all(|entry| entry.has(W)), "{}: {gva:#x}", M::NAME);
    }
}

/// Where the guest's entry for `gva` at `level` lies. A path that breaks off is followed no
/// further: the entry where it breaks is returned.
fn walk(host: &Host, root: Gfn, gva: Gva, level: u8) -> Gpa {
    let mut at = slot(root, gva.index(4));
    for below in (level..4).rev() {
        let entry = GuestPte(host.entry(at).load(Relaxed));
        if !entry.present() {
            return at;
        }
        at = slot(entry.gfn(), gva.index(below));
    }
    at
}

#[test]
fn all_designs_give_the_same_answers() {
    for seed in 0..200 {
        let (mut roost, mut mutex, mut lock) =
            (Vm::<Roost>::new(), Vm::<OneMutex>::new(), Vm::<ReaderWriter>::new());
        let mut random = fastrand::Rng::with_seed(seed);
        for step in 0..500 {
            let mut same = [(); 2].map(|()| random.clone());
            let outcome = roost.step(&mut random);
            assert_eq!(outcome, mutex.step(&mut same[0]), "seed {seed}, step {step}");
            assert_eq!(outcome, lock.step(&mut same[1]), "seed {seed}, step {step}");
        }
    }
}

#[test]
fn dropped_roots_give_their_pages_back() {
    fn run<M: Design>() {
        let mut vm = Vm::<M>::new();
        vm.mmu.reclaim();
        let free = vm.mmu.free_pages();
        for gva in [0, 0x4000_0000] {
            guest_store(&vm.mmu, &mut vm.vcpu, vm.entries[1][0], DATA << 12 | USER_PAGE);
            guest_store(&vm.mmu, &mut vm.vcpu, vm.entries[1][6], DATA << 12 | USER_PAGE);
            let before = vm.mmu.free_pages();
            assert!(vm.mmu.load_root(&mut vm.vcpu, vm.roots[1]));
            assert_eq!(vm.mmu.fault(&mut vm.vcpu, Gva(gva), READ), Outcome::Mapped);
            assert!(vm.mmu.free_pages() < before, "{}: nothing was shadowed", M::NAME);
            assert!(vm.mmu.load_root(&mut vm.vcpu, vm.roots[0]));
            vm.mmu.drop_root(vm.roots[1]);
            vm.mmu.reclaim();
            vm.mmu.entering(&vm.vcpu);
            vm.mmu.reclaim();
        }
        // The tables of the kernel's direct map stay.
        assert!(free - vm.mmu.free_pages() <= 3, "{}: pages are lost", M::NAME);
    }
    run::<Roost>();
    run::<OneMutex>();
    run::<ReaderWriter>();
}

/// Two vCPUs fault, one of them also takes mappings away again and flushes.
#[test]
fn two_vcpus_leave_nothing_stale_behind() {
    fn run<M: Design>() {
        let host = Host::new(SIZE);
        let mut tables = Tables::new(&host);
        let root = tables.root(&host);
        for (n, &gva) in ADDRESSES.iter().enumerate() {
            tables.map(&host, root, Gva(gva), Gfn(DATA + n as u64 % 4), USER_PAGE);
        }
        let mmu = M::new(host, 2);
        std::thread::scope(|scope| {
            for index in 0..2 {
                let mmu = &mmu;
                scope.spawn(move || {
                    let mut vcpu = mmu.vcpu(index);
                    assert!(mmu.load_root(&mut vcpu, root));
                    let mut random = fastrand::Rng::with_seed(index as u64);
                    for _ in 0..50_000 {
                        let gva = Gva(ADDRESSES[random.usize(..ADDRESSES.len())]);
                        assert_eq!(mmu.fault(&mut vcpu, gva, WRITE), Outcome::Mapped);
                        mmu.entering(&vcpu);
                        match random.u32(..8) {
                            0 => mmu.zap_frame(Gfn(DATA + random.u64(..4))),
                            1 => mmu.flush_address(&mut vcpu, gva),
                            2 => mmu.flush(&mut vcpu),
                            _ => {}
                        }
                    }
                });
            }
        });
        let mut vcpu = mmu.vcpu(0);
        assert!(mmu.load_root(&mut vcpu, root));
        check(&mmu, &vcpu, root, &ADDRESSES);
        for frame in 0..4 {
            mmu.zap_frame(Gfn(DATA + frame));
        }
        let (_, user) = mmu.roots(&vcpu);
        for gva in ADDRESSES {
            let left = shadow_entry(mmu.host(), user, Gva(gva));
            assert!(left.is_none(), "{}: {gva:#x} has no reference", M::NAME);
        }
    }
    run::<Roost>();
    run::<OneMutex>();
    run::<ReaderWriter>();
}
