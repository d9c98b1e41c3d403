//! vCPUs around one MMU, each with a TLB that never evicts, and what must hold at the end.

use super::world::{BLOCK, CPUS, FRAMES, LEVEL1, LEVEL2, LEVEL3, ROOT, World};
use crate::{
    env::{GuestMemory, TablePool},
    fault::{Access, Outcome},
    mmu::{Config, Mmu},
    page::{EntryRef, PageId},
    primitive::Ordering::{Acquire, Relaxed},
    pte::{A, D, P, Spte, U, W},
    root::VcpuMmu,
    walk::Paging,
};
use pv_abi::addr::{Gfn, Gva};
use std::{
    sync::{Arc, atomic::AtomicU64},
    vec,
    vec::Vec,
};

/// Bits of a guest entry that links, and of one that maps a frame read-write.
pub const LINK: u64 = P | W | U | A;
pub const PAGE: u64 = P | W | U | A | D;
/// An entry of L1's own in every root, in slot 1.
pub const FIXED: u64 = 0xdead_b000 | P;
pub const READ: Access = Access::USER;
pub const WRITE: Access = Access::WRITE.union(Access::USER);

/// Guest entry that points to `gfn`.
pub const fn entry(gfn: Gfn, bits: u64) -> u64 {
    gfn.0 << 12 | bits
}

/// The address that goes through entry `level2` of the level-2 table and entry `level1` of the
/// level-1 table.
pub const fn address(level2: u64, level1: u64) -> Gva {
    Gva(level2 << 21 | level1 << 12)
}

/// Explores what two or three threads can do to each other if they are preempted at most
/// `preemptions` times; `LOOM_MAX_PREEMPTIONS` overrides that.
pub fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 50_000;
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    std::println!("{} executions", runs.load(Relaxed));
}

/// A VM whose tables link one of each level; nothing is loaded or mapped.
pub fn vm(pool: u32) -> Arc<Mmu<World>> {
    vm_with(pool, FRAMES, 1)
}

/// The same with frames from [`super::world::BLOCK`] on, for large pages.
pub fn vm_with_block(pool: u32) -> Arc<Mmu<World>> {
    vm_with(pool, 2 * BLOCK.0, 2)
}

fn vm_with(pool: u32, frames: u64, largest: u8) -> Arc<Mmu<World>> {
    let world = World::new(pool);
    world.store(ROOT, 0, entry(LEVEL3, LINK));
    world.store(LEVEL3, 0, entry(LEVEL2, LINK));
    world.store(LEVEL2, 0, entry(LEVEL1, LINK));
    let config = Config {
        frames,
        upper_slots: 256..512,
        paging: Paging::new(40, false),
        fixed: vec![(1, FIXED, true)],
        reserved_slots: 1..2,
        largest,
    };
    Arc::new(Mmu::new(world, config, CPUS))
}

#[derive(Clone, Copy, Debug)]
struct Cached {
    gva: Gva,
    gfn: Gfn,
    write: bool,
    dirty: bool,
}

/// A vCPU.
#[derive(Debug)]
pub struct Cpu {
    pub mmu: Arc<Mmu<World>>,
    pub vcpu: VcpuMmu,
    tlb: Vec<Cached>,
    flushed: u64,
}

impl Cpu {
    /// vCPU `index`, with the guest's root loaded, about to run.
    pub fn new(mmu: &Arc<Mmu<World>>, index: usize) -> Self {
        // The tokens of a vCPU with a high number have every bit that something could clear.
        let mut vcpu = VcpuMmu::new(63 - index);
        vcpu.index = index;
        mmu.load_root(&mut vcpu, ROOT, true).unwrap();
        mmu.entering(index);
        Self { mmu: Arc::clone(mmu), vcpu, tlb: Vec::new(), flushed: 0 }
    }

    pub fn world(&self) -> &World {
        self.mmu.env()
    }

    /// L1's own entries are in both loaded roots: without them no vCPU may run.
    pub fn check_fixed(&self) {
        let roots = self.vcpu.roots().unwrap();
        for root in [roots.smod, roots.umod] {
            assert_eq!(self.world().table(root).0[1].load(Acquire), FIXED, "L1's own entry");
        }
    }

    /// A fault on `gva` that must end in a mapping.
    pub fn fault(&mut self, gva: Gva, access: Access) {
        assert_eq!(self.mmu.prefault(&mut self.vcpu, gva, access).0, Outcome::Mapped);
    }

    /// Flushes `gva`, as INVLPG does.
    pub fn flush_address(&mut self, gva: Gva) {
        self.mmu.flush_address(&self.vcpu, gva);
        self.tlb.retain(|cached| cached.gva != gva);
    }

    /// The guest announces that it has stored entry `index` of `table`.
    pub fn note(&mut self, table: Gfn, index: u64) {
        self.mmu.note(&mut self.vcpu, table.gpa().offset(8 * index));
    }

    /// Flushes the address space.
    pub fn flush(&mut self) {
        self.mmu.flush(&mut self.vcpu);
        self.tlb.clear();
    }

    /// One attempt of guest code to access `gva`: the frame it reached. `then` follows before the
    /// guest can be interrupted.
    pub fn attempt(
        &mut self,
        gva: Gva,
        access: Access,
        then: impl FnOnce(&World, Gfn),
    ) -> Option<Gfn> {
        let mmu = Arc::clone(&self.mmu);
        mmu.env().run(self.vcpu.index, |requests| {
            if self.flushed != requests {
                self.flushed = requests;
                self.tlb.clear();
            }
            mmu.entering(self.vcpu.index);
            let cached = self.hardware(gva, access)?;
            then(mmu.env(), cached.gfn);
            Some(cached.gfn)
        })
    }

    /// Guest code that accesses `gva` until it succeeds.
    pub fn access(&mut self, gva: Gva, access: Access) -> Gfn {
        loop {
            if let Some(gfn) = self.attempt(gva, access, |_, _| ()) {
                return gfn;
            }
            self.fault(gva, access);
        }
    }

    /// Guest code that stores `value` in entry `index` of the table that `gva` maps.
    pub fn store(&mut self, gva: Gva, index: usize, value: u64) {
        let then = |world: &World, table| world.store(table, index, value);
        while self.attempt(gva, WRITE, then).is_none() {
            self.fault(gva, WRITE);
        }
    }

    fn hardware(&mut self, gva: Gva, access: Access) -> Option<Cached> {
        let hit = self.tlb.iter().find(|cached| cached.gva == gva).copied();
        if let Some(hit) = hit
            && (!access.contains(Access::WRITE) || hit.write && hit.dirty)
        {
            return Some(hit);
        }
        self.tlb.retain(|cached| cached.gva != gva);
        let (at, mut cached) = self.shadow(gva, access)?;
        if access.contains(Access::WRITE) {
            let slot = &self.world().table(at.page()).0[at.index()];
            // The hardware sets D in the very entry that it uses, or looks again.
            slot.fetch_update(Acquire, Relaxed, |now| {
                let same = Spte(now).present() && Spte(now).has(W);
                (same && self.world().guest_frame(Spte(now).hpa()) == cached.gfn).then_some(now | D)
            })
            .ok()?;
            cached.dirty = true;
        }
        self.tlb.push(cached);
        Some(cached)
    }

    /// Walks the shadow tables: what a look at `gva` finds, whatever the TLB has.
    fn shadow(&self, gva: Gva, access: Access) -> Option<(EntryRef, Cached)> {
        let mut page = self.vcpu.roots().unwrap().of(access);
        let mut write = true;
        for level in (1..=4).rev() {
            let index = gva.index(level);
            let slot = &self.world().table(page).0[index];
            let entry = Spte(slot.load(Acquire));
            if !entry.present() {
                return None;
            }
            if !entry.has(A) {
                let _ = slot.compare_exchange(entry.0, entry.0 | A, Relaxed, Relaxed);
            }
            write &= entry.has(W);
            if level == 1 {
                let gfn = self.world().guest_frame(entry.hpa());
                let cached = Cached { gva, gfn, write, dirty: entry.has(D) };
                return Some((EntryRef::new(page, index), cached));
            }
            page = self.world().id(entry.hpa());
        }
        None
    }

    /// The frame that `gva` would reach now, and whether it may be written.
    pub fn mapped(&self, gva: Gva) -> Option<(Gfn, bool)> {
        self.mapped_for(gva, READ)
    }

    /// The same in the root that `access` uses.
    pub fn mapped_for(&self, gva: Gva, access: Access) -> Option<(Gfn, bool)> {
        self.shadow(gva, access).map(|(_, cached)| (cached.gfn, cached.write))
    }
}

/// Every structure agrees with every other, once all threads are done.
pub fn check_structures(mmu: &Mmu<World>) {
    let world = mmu.env();
    for id in 0..world.capacity() {
        let page = mmu.pages.get(id);
        let role = page.role();
        for (index, slot) in world.table(id).0.live() {
            let entry = Spte(slot.load(Acquire));
            if page.is_dead() {
                assert_eq!(entry, Spte::ABSENT, "dead page {id} has an entry");
            } else if role.level() == 4 && index == 1 {
                assert_eq!(entry.0, FIXED, "L1's own entry");
            } else if entry != Spte::ABSENT {
                assert!(entry.present(), "a token outlived its install");
                check_reference(mmu, EntryRef::new(id, index), entry, role.level());
            }
        }
    }
    for gfn in (0..FRAMES).map(Gfn) {
        mmu.rmap(gfn).lock(&mmu.chunks).for_each(|at| {
            let entry = Spte(world.table(at.page()).0[at.index()].load(Acquire));
            assert!(entry.present() && world.guest_frame(entry.hpa()) == gfn, "rmap of {gfn:?}");
            let protected = mmu.tables.get(gfn) && mmu.protected.get(gfn);
            assert!(!(protected && entry.has(W)), "{gfn:?} lost its write protection");
        });
    }
}

fn check_reference(mmu: &Mmu<World>, at: EntryRef, entry: Spte, level: u8) {
    let (list, chunks) = if level == 1 {
        (mmu.rmap(mmu.env().guest_frame(entry.hpa())), &mmu.chunks)
    } else {
        let child: PageId = mmu.env().id(entry.hpa());
        assert!(!mmu.pages.get(child).is_dead(), "{at:?} links a dead page");
        (&mmu.pages.get(child).parents, &mmu.link_chunks)
    };
    let mut found = 0;
    list.lock(chunks).for_each(|other| found += usize::from(other == at));
    assert_eq!(found, 1, "{at:?} is listed once");
}

/// The entry that maps `gva` in the guest's level-1 table.
pub fn leaf(world: &World, index: usize) -> &crate::primitive::AtomicU64 {
    world.entry(LEVEL1, index)
}
