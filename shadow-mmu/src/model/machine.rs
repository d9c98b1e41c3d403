//! The machine: one vCPU, its TLB, its guest, and the checks after every step.

use super::{
    World,
    log::LogCheck,
    oracle::{self, Oracle},
    world::{BLOCK, END, FRAMES},
};
use crate::{
    dirty::FRAMES_PER_WORD,
    env::{ENTRIES, GuestMemory, TablePool},
    fault::{Access, Outcome},
    large,
    mmu::{Config, Mmu},
    page::{EntryRef, Role, ShadowPage},
    primitive::{AtomicU64, Ordering::Relaxed},
    pte::{A, D, NX, P, PS, Spte, U, W},
    root::VcpuMmu,
    walk::Paging,
};
use pv_abi::addr::{Gfn, Gpa, Gva};
use std::{collections::HashMap, string::String, vec::Vec};

/// Where the guest maps all its memory for itself (slot 273), supervisor-only.
pub const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// The guest's two root tables, and the tables of its direct map.
pub const ROOTS: [Gfn; 2] = [Gfn(1), Gfn(2)];
const DIRECT_TABLES: [u64; 3] = [3, 4, 5];
/// Tables that the test rewrites: lower half of either root, and a kernel range.
pub const LEVEL3: [Gfn; 3] = [Gfn(6), Gfn(10), Gfn(13)];
pub const LEVEL2: [Gfn; 3] = [Gfn(7), Gfn(11), Gfn(14)];
pub const LEVEL1: [Gfn; 4] = [Gfn(8), Gfn(9), Gfn(12), Gfn(15)];
const KERNEL_SLOT: usize = 402;
/// Where entry 2 of a directory leads, which starts out as a large page.
pub const LARGE: u64 = 0x40_0000;
/// An entry that L1 keeps in slot 257 of every root.
const WINDOW: u64 = 0xdead_b000 | P;

#[derive(Clone, Copy, Debug)]
struct Cached {
    gfn: Gfn,
    write: bool,
    fetch: bool,
    dirty: bool,
}

pub struct Machine {
    pub mmu: Mmu<World>,
    pub vcpu: VcpuMmu,
    pub root: Gfn,
    pub addresses: Vec<Gva>,
    oracle: Oracle,
    tlb: HashMap<(bool, u64), Cached>,
    smep: bool,
    log: Option<LogCheck>,
    /// The entry noted last, as long as the guest has not run since.
    noted: Option<Gpa>,
}

impl Machine {
    /// A guest whose two roots have the tables above linked, and nothing mapped but its
    /// direct map.
    pub fn new(pool: u32, notes: bool, smep: bool) -> Self {
        let world = World::new(pool);
        let link = P | W | U | A;
        let kernel = P | W | A | D;
        for (index, root) in ROOTS.into_iter().enumerate() {
            world.store(root.gpa(), LEVEL3[index].gpa().0 | link);
            world.store(root.gpa().offset(8 * 273), DIRECT_TABLES[0] << 12 | kernel);
            world.store(root.gpa().offset(8 * KERNEL_SLOT as u64), LEVEL3[2].gpa().0 | kernel);
        }
        for pair in DIRECT_TABLES.windows(2) {
            world.store(Gpa(pair[0] << 12), pair[1] << 12 | kernel);
        }
        for frame in 0..FRAMES {
            world.store(Gpa(DIRECT_TABLES[2] << 12).offset(8 * frame), frame << 12 | kernel | NX);
        }
        for index in 0..3 {
            world.store(LEVEL3[index].gpa(), LEVEL2[index].gpa().0 | link);
        }
        for table in LEVEL2 {
            world.store(table.gpa().offset(16), BLOCK << 12 | P | W | U | A | D | PS);
        }
        world.store(LEVEL2[0].gpa(), LEVEL1[0].gpa().0 | link);
        world.store(LEVEL2[0].gpa().offset(8), LEVEL1[1].gpa().0 | link);
        world.store(LEVEL2[1].gpa(), LEVEL1[2].gpa().0 | link);
        world.store(LEVEL2[2].gpa(), LEVEL1[3].gpa().0 | kernel);

        let config = Config {
            frames: END,
            upper_slots: 256..512,
            paging: Paging::new(40, smep),
            fixed: std::vec![(257, WINDOW, true), (264, WINDOW, false)],
            reserved_slots: 256..272,
            largest: 2,
        };
        let mmu = Mmu::new(world, config, 1);
        if notes {
            mmu.enable_notes();
            for root in ROOTS {
                mmu.pin_root(root).unwrap();
            }
        }
        let mut addresses: Vec<_> =
            [0, 0x1000, 0x2000, 0x5000, 0x1f_f000, 0x20_0000, 0x20_1000, LARGE, LARGE + 0x3000]
                .map(Gva)
                .to_vec();
        let kernel_base = 0xffff_0000_0000_0000 | (KERNEL_SLOT as u64) << 39;
        addresses.extend([0, 0x1000, 0x3000].map(|offset| Gva(kernel_base + offset)));
        addresses.push(Gva(kernel_base + LARGE + 0x3000));
        addresses.extend((0..FRAMES).map(|frame| Gva(DIRECT_MAP + (frame << 12))));
        let oracle = Oracle::new(&addresses);
        let vcpu = VcpuMmu::new(0);
        let mut machine = Self {
            mmu,
            vcpu,
            root: ROOTS[0],
            addresses,
            oracle,
            tlb: HashMap::new(),
            smep,
            log: None,
            noted: None,
        };
        machine.load_root(ROOTS[0]);
        machine
    }

    /// Has the oracle look at one more address.
    pub fn watch(&mut self, gva: Gva) {
        if !self.addresses.contains(&gva) {
            self.addresses.push(gva);
            self.oracle.watch(gva);
            self.oracle.observe(self.mmu.env(), self.root);
        }
    }

    /// The guest entry at `at`.
    pub fn load(&self, at: Gpa) -> u64 {
        self.world().load(at).unwrap()
    }

    pub fn live_pages(&self) -> impl Iterator<Item = &ShadowPage> {
        let pages = (0..self.world().capacity()).map(|id| self.mmu.pages.get(id));
        pages.filter(|page| !page.is_dead())
    }

    fn world(&self) -> &World {
        self.mmu.env()
    }

    /// The hardware's side of an entry to the guest.
    fn enter(&mut self) {
        self.noted = None;
        if self.world().flush_requested.take() {
            self.tlb.clear();
        }
        self.mmu.entering(0);
    }

    pub fn zap_frame(&mut self, gfn: Gfn) {
        self.mmu.zap_frame(gfn);
        let lists = [2, 3].map(|level| self.mmu.blocks.mappings(level, gfn));
        for list in lists.into_iter().chain([self.mmu.rmap(gfn)]) {
            assert!(list.lock(&self.mmu.chunks).is_empty(), "{gfn:?} is mapped still");
        }
    }

    pub fn start_log(&mut self) {
        self.mmu.start_dirty_log();
        self.enter();
        self.log = Some(LogCheck::new(self.mmu.env()));
    }

    pub fn stop_log(&mut self) {
        self.mmu.stop_dirty_log();
        self.log = None;
    }

    /// Takes the log, if it is on, and compares it with what was written.
    pub fn take_log(&mut self) {
        if self.log.is_some() {
            let mut words = [0; (END / FRAMES_PER_WORD) as usize];
            self.mmu.take_dirty_log(Gfn(0), &mut words);
            self.enter();
            self.log.as_mut().unwrap().check(self.mmu.env(), &words);
        }
    }

    /// After an operation of L1's own the next entry flushes what it asked for.
    pub fn flush_requests(&mut self) {
        self.oracle.observe(self.mmu.env(), self.root);
        self.enter();
    }

    pub fn load_root(&mut self, root: Gfn) {
        while self.mmu.load_root(&mut self.vcpu, root, true).is_err() {
            self.mmu.shrink();
            self.mmu.reclaim();
            self.enter();
            self.mmu.reclaim();
        }
        self.root = root;
        self.tlb.clear();
        self.enter();
        // F1: the upper half may keep what it had; what the new tables say counts as well.
        self.oracle.observe(self.mmu.env(), root);
        self.oracle.flush(self.mmu.env(), root, |gva| gva.index(4) < 256);
        self.check_shadow(|gva| gva.index(4) < 256);
    }

    pub fn flush(&mut self) {
        self.mmu.flush(&mut self.vcpu);
        self.tlb.clear();
        self.enter();
        self.oracle.flush(self.mmu.env(), self.root, |_| true);
        self.check_shadow(|_| true);
    }

    pub fn flush_address(&mut self, gva: Gva) {
        self.mmu.flush_noted_address(&self.vcpu, gva, self.noted);
        for user in [false, true] {
            self.tlb.remove(&(user, gva.page().0));
        }
        self.enter();
        self.oracle.flush(self.mmu.env(), self.root, |other| other == gva.page());
        self.check_shadow(|other| other == gva.page());
    }

    /// A store to guest memory by the guest's kernel, through its direct map.
    pub fn kernel_store(&mut self, at: Gpa, value: u64) {
        let gva = Gva(DIRECT_MAP + at.0);
        let write = Access::WRITE;
        if self.access(gva, write) == Some(at.gfn()) {
            self.world().store(at, value);
            self.oracle.observe(self.mmu.env(), self.root);
        }
    }

    /// A store by the shim: past the guest's tables, and noted if the frame is shown as a table.
    pub fn noted_store(&mut self, at: Gpa, value: u64) {
        self.world().store(at, value);
        if let Some(log) = &mut self.log {
            log.wrote(at.gfn());
        }
        let shown = self.world().shown.borrow().contains(&at.gfn().0);
        if shown {
            self.mmu.note(&mut self.vcpu, at);
        } else {
            self.mmu.wrote(at.gfn());
        }
        self.enter();
        self.noted = shown.then_some(at);
        self.oracle.observe(self.mmu.env(), self.root);
    }

    /// Executes an access; the frame it reached, or `None` if the guest got a fault.
    pub fn access(&mut self, gva: Gva, access: Access) -> Option<Gfn> {
        self.noted = None;
        for _ in 0..64 {
            if let Some(gfn) = self.hardware(gva, access) {
                let smep = self.smep;
                assert!(
                    self.oracle.may_reach(gva, access, gfn, smep),
                    "{gva:?} {access:?} reached {gfn:?}; allowed: {:?}",
                    self.oracle.history(gva)
                );
                self.check_accessed(gva, access);
                if let Some(log) = self.log.as_mut().filter(|_| access.contains(Access::WRITE)) {
                    log.wrote(gfn);
                }
                return Some(gfn);
            }
            let outcome = self.mmu.fault(&mut self.vcpu, gva, access);
            let truth = oracle::walk(self.world(), self.root, gva);
            let permitted = truth.filter(|t| t.permits(access, self.smep));
            match outcome {
                Outcome::Mapped => {
                    let may = self.oracle.may_succeed(gva, access, self.smep);
                    assert!(may, "mapped {gva:?}: {truth:?}");
                }
                Outcome::Reflect(_) => {
                    assert!(permitted.is_none(), "reflected {gva:?} {access:?}: {truth:?}");
                    self.enter();
                    return None;
                }
                Outcome::Mmio(gpa) => {
                    assert_eq!(permitted.map(|t| t.gfn), Some(gpa.gfn().0));
                    assert!(self.world().host_frame(gpa.gfn()).is_none());
                    self.enter();
                    return None;
                }
                Outcome::NoMemory => {
                    self.mmu.shrink();
                    self.mmu.reclaim();
                }
            }
            // The MMU set A and D.
            self.oracle.observe(self.mmu.env(), self.root);
            self.enter();
            self.mmu.reclaim();
        }
        panic!("{gva:?} {access:?} faults for ever");
    }

    /// TLB, then shadow tables, as the hardware goes about it.
    fn hardware(&mut self, gva: Gva, access: Access) -> Option<Gfn> {
        let key = (access.contains(Access::USER), gva.page().0);
        if let Some(cached) = self.tlb.get(&key) {
            let permitted = (cached.write || !access.contains(Access::WRITE))
                && (cached.fetch || !access.contains(Access::FETCH));
            if permitted && (cached.dirty || !access.contains(Access::WRITE)) {
                return Some(cached.gfn);
            }
        }
        self.tlb.remove(&key);
        let mark = |entry: &AtomicU64| {
            entry.fetch_or(A, Relaxed);
        };
        let (entry, cached) = self.shadow(access.contains(Access::USER), gva, mark)?;
        if access.contains(Access::WRITE) && !cached.write
            || access.contains(Access::FETCH) && !cached.fetch
        {
            return None;
        }
        let mut cached = cached;
        if access.contains(Access::WRITE) {
            self.world().table(entry.page()).0[entry.index()].fetch_or(D, Relaxed);
            cached.dirty = true;
        }
        self.tlb.insert(key, cached);
        Some(cached.gfn)
    }

    /// Walks the shadow tables; calls `visit` for each entry.
    fn shadow(
        &self,
        user: bool,
        gva: Gva,
        visit: impl Fn(&AtomicU64),
    ) -> Option<(EntryRef, Cached)> {
        let roots = self.vcpu.roots().unwrap();
        let mut page = if user { roots.umod } else { roots.smod };
        let (mut write, mut fetch) = (true, true);
        for level in (1..=4).rev() {
            let index = gva.index(level);
            let entry = Spte(self.world().table(page).0[index].load(Relaxed));
            if !entry.present() {
                return None;
            }
            assert!(entry.has(U), "the guest runs at CPL3");
            visit(&self.world().table(page).0[index]);
            write &= entry.has(W);
            fetch &= !entry.has(NX);
            if level == 1 || entry.is_large() {
                let within = gva.0 >> 12 & (large::frames(level) - 1);
                let gfn = Gfn(self.world().guest_frame(entry.hpa()).0 + within);
                let cached = Cached { gfn, write, fetch, dirty: entry.has(D) };
                return Some((EntryRef::new(page, index), cached));
            }
            page = self.world().id(entry.hpa());
        }
        unreachable!()
    }

    /// A and D must be set by an access, unless the guest cleared them since the last flush.
    fn check_accessed(&self, gva: Gva, access: Access) {
        if let [Some(only)] = self.oracle.history(gva) {
            assert!(only.accessed, "A lost at {gva:?}");
            assert!(only.dirty || !access.contains(Access::WRITE), "D lost at {gva:?}");
        }
    }

    /// What the shadow maps for the flushed addresses, the guest's tables allow now.
    fn check_shadow(&self, flushed: impl Fn(Gva) -> bool) {
        for &gva in self.addresses.iter().filter(|&&gva| flushed(gva)) {
            let truth = oracle::walk(self.world(), self.root, gva);
            for user in [false, true] {
                let Some((_, shadow)) = self.shadow(user, gva, |_| ()) else { continue };
                let context = || -> String { std::format!("{gva:?} {shadow:?} {truth:?}") };
                let truth = truth.unwrap_or_else(|| panic!("stale: {}", context()));
                assert_eq!(shadow.gfn.0, truth.gfn, "stale frame: {}", context());
                assert!(truth.user || !user, "supervisor page in user mode: {}", context());
                assert!(!shadow.write || truth.write && truth.dirty, "{}", context());
                let smep = self.smep && !user && truth.user;
                assert!(!shadow.fetch || truth.fetch && !smep, "{}", context());
                assert!(truth.accessed, "mapped though A is clear: {}", context());
            }
        }
    }

    /// Every structure agrees with every other.
    pub fn check_structures(&self) {
        let mut tables = std::collections::HashSet::new();
        for id in 0..self.world().capacity() {
            let page = self.mmu.pages.get(id);
            let table = self.world().table(id);
            if page.is_dead() {
                assert!(table.0.iter().all(|entry| entry.load(Relaxed) == 0), "page {id} not zero");
                continue;
            }
            let role = page.role();
            if !role.contains(Role::DIRECT) {
                tables.insert(page.gfn().0);
            }
            for index in 0..ENTRIES {
                let entry = Spte(table.0[index].load(Relaxed));
                let fixed = role.level() == 4 && (256..272).contains(&index);
                if fixed {
                    let user = role.contains(Role::USER_ONLY);
                    let expected = if index == 257 || index == 264 && !user { WINDOW } else { 0 };
                    assert_eq!(entry.0, expected);
                } else if entry != Spte::ABSENT {
                    assert!(entry.present(), "a token outlived its install");
                    assert!(page.used() >> (index / 8) & 1 == 1);
                    self.check_reference(EntryRef::new(id, index), entry, role.level());
                }
            }
        }
        assert_eq!(*self.world().shown.borrow(), tables, "the table bitmap");
        for gfn in (0..END).map(Gfn) {
            self.mmu.rmap(gfn).lock(&self.mmu.chunks).for_each(|at| {
                let entry = Spte(self.world().table(at.page()).0[at.index()].load(Relaxed));
                assert!(entry.present() && self.world().guest_frame(entry.hpa()) == gfn, "rmap");
                let protected = self.mmu.tables.get(gfn) && self.mmu.protected.get(gfn);
                assert!(!(entry.has(W) && protected), "lost write protection");
            });
        }
        for gfn in self.mmu.hot.tables() {
            assert!(self.mmu.tables.get(gfn), "{gfn:?} is hot and no table");
        }
    }

    fn check_reference(&self, at: EntryRef, entry: Spte, level: u8) {
        let (list, chunks) = if entry.is_large() {
            let gfn = self.world().guest_frame(entry.hpa());
            let inside = (0..large::frames(level)).map(|n| Gfn(gfn.0 + n));
            assert!(!inside.into_iter().any(|gfn| self.mmu.tables.get(gfn)), "a table is inside");
            (self.mmu.blocks.mappings(level, gfn), &self.mmu.chunks)
        } else if level == 1 {
            (self.mmu.rmap(self.world().guest_frame(entry.hpa())), &self.mmu.chunks)
        } else {
            let child = self.mmu.pages.get(self.world().id(entry.hpa()));
            assert!(!child.is_dead() && child.role().level() == level - 1);
            (&child.parents, &self.mmu.link_chunks)
        };
        let mut found = 0;
        list.lock(chunks).for_each(|other| found += usize::from(other == at));
        assert_eq!(found, 1, "{at:?} is listed once");
    }
}
