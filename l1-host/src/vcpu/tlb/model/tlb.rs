//! The model as the vCPU sees it: the same methods as the CPU's TLB.
//! May: take-frame, alloc. Context: run-loop.

use super::{
    cache::{Leaf, Page, Time},
    fill::View,
    flaw::{FLAWS, Flaw},
    tags::{Caches, ModelOps, Tag, UPPER},
    walk::{self, Shadow},
};
use crate::{
    hw::{percpu::Cpu, physmap},
    memory::{self, heap},
    vcpu::{state::Mode, stop::Stop, tlb::Request},
    vm::Vm,
};
use alloc::{collections::VecDeque, vec::Vec};
use core::{
    cell::RefCell,
    sync::atomic::Ordering::{AcqRel, Release},
};
use pv_abi::addr::{Gfn, Gva, Hpa};
use shadow_mmu::{
    VcpuMmu,
    pte::{ADDRESS, D, P, U, W},
    tlb::{Cr3Pair, Kept, Tags},
};

/// Memory for the model, bytes, and what one page in it takes. It gets half of what is free, at
/// most.
const MEMORY: u64 = 16 << 20;
const PAGE_COST: u64 = 64;
/// Tags in use.
const TAGS: u64 = 60;
/// CR3: the tag, and "keep its translations".
const TAG: u64 = 0xfff;
const KEEP: u64 = 1 << 63;
/// Pages that the guest used last, which are looked at first after a flush.
pub(super) const RECENT: usize = 64;
/// Flushes of single addresses that are remembered for address spaces that are not loaded.
const ADDRESSES: usize = 1024;

/// What was counted. A run that has cached nothing proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Translations that were cached.
    pub cached: u64,
    /// Translations that a load of CR3 has kept, each time: TCG would have dropped them.
    pub kept: u64,
    /// Flushes that were judged.
    pub flushes: u64,
    /// Translations that were compared with the guest's tables.
    pub compared: u64,
    /// Translations whose frame, and links whose table, was looked at.
    pub inspected: u64,
    /// Pages that did not fit.
    pub forgotten: u64,
}

/// The CPU's tags, or imaginary ones, and the model.
#[derive(Debug)]
pub struct Tlb {
    tags: Tags,
    pub(super) caches: RefCell<Caches>,
    /// The CPU has tags and INVPCID.
    real: bool,
    pub(super) flaw: Option<Flaw>,
    /// The flush of other address spaces was left out, as a flaw.
    left_out: bool,
    /// A shadow entry that is to stay as it is, as a flaw.
    stays: Option<Shadow>,
    /// The root that was selected, its tags, and the shadow root for supervisor mode.
    pub(super) root: Gfn,
    pub(super) loaded: [u16; 2],
    smod: Hpa,
    /// Flushes that the guest has asked for since it was last entered.
    pub(super) requests: Vec<(Time, Request)>,
    /// Pages that may have been mapped since then.
    pub(super) touched: Vec<Page>,
    pub(super) recent: VecDeque<Page>,
    /// When the guest last asked for a flush: of everything, of a tag, of single addresses.
    pub(super) all_flushed: Time,
    pub(super) flushed: Vec<Time>,
    pub(super) addresses: VecDeque<(Time, Page)>,
    /// Up to when the flushes of single addresses were judged, by tag.
    pub(super) judged: Vec<Time>,
    /// What the MMU had done when the tables were last inspected.
    pub(super) inspected: [u64; 6],
    pub(super) entries: u64,
    /// Pages that one tag can remember.
    pub(super) most: usize,
    /// The guest has large pages.
    pub(super) large: bool,
    pub(super) counts: Counts,
}

impl Tlb {
    pub fn new(cpu: &Cpu) -> Self {
        let bytes = MEMORY.min(memory::free_bytes() / 2) & !0xfff;
        let taken = memory::take_pages(bytes >> 12, 4096);
        if let Some(start) = taken {
            heap::add(start, bytes);
        }
        let most = taken.map_or(64, |_| (bytes / TAGS / PAGE_COST) as usize);
        let flaw = FLAWS.planted();
        crate::log!("TLB model: {most} pages per tag, flaw {flaw:?}");
        Self {
            tags: Tags::new(Kept::ByTag),
            caches: RefCell::default(),
            real: cpu.features.pcid && cpu.features.invpcid,
            flaw,
            left_out: false,
            stays: None,
            root: Gfn(0),
            loaded: [0; 2],
            smod: Hpa(0),
            requests: Vec::new(),
            touched: Vec::new(),
            recent: VecDeque::new(),
            all_flushed: 0,
            flushed: alloc::vec![0; 64],
            addresses: VecDeque::new(),
            judged: alloc::vec![0; 64],
            inspected: [0; 6],
            entries: 0,
            most,
            large: false,
            counts: Counts::default(),
        }
    }

    pub fn select(&mut self, root: Gfn) {
        self.root = root;
        self.tags.select(root);
    }

    pub fn flush_all(&mut self) {
        let asked = self.was_asked(Request::All);
        let forgotten = if asked { Flaw::All } else { Flaw::LowerAddress };
        if self.flaw == Some(forgotten) {
            self.left_out = !asked;
        } else {
            self.tags.flush_all();
        }
    }

    pub fn flush_requested(&mut self) {
        let left_out = core::mem::take(&mut self.left_out);
        if self.flaw != Some(Flaw::Requested) && !left_out {
            self.tags.flush_all();
        }
    }

    pub fn flush_current(&mut self) {
        let forgotten = if self.was_asked(Request::Load) { Flaw::Load } else { Flaw::Current };
        if self.flaw != Some(forgotten) {
            self.tags.flush_current();
        }
    }

    pub fn flush_address(&mut self, gva: Gva) {
        let hide = self.flaw == Some(Flaw::UpperAddress) && gva.0 & UPPER == UPPER;
        let flaw = self.flaw.filter(|&flaw| flaw != Flaw::UpperAddress || hide);
        let ops = ModelOps { caches: &self.caches, root: self.root, real: self.real, flaw };
        self.tags.flush_address(&ops, if hide { Gva(gva.0 & !UPPER) } else { gva });
        if let Some(Shadow { raw, at, .. }) = self.stays.take() {
            physmap::frame(at.0)[at.1].store(raw, Release);
        }
    }

    pub fn prepare(&mut self, smod: Hpa, umod: Hpa) -> Cr3Pair {
        let ops =
            ModelOps { caches: &self.caches, root: self.root, real: self.real, flaw: self.flaw };
        let pair = self.tags.prepare(&ops, smod, umod);
        self.smod = smod;
        self.loaded = [pair.smod, pair.umod].map(|cr3| (cr3 & TAG) as u16);
        for (cr3, tag) in [pair.smod, pair.umod].into_iter().zip(self.loaded) {
            if cr3 & KEEP == 0 {
                self.caches.get_mut().clear(tag);
            }
        }
        // What the CPU is given stays legal for it.
        if self.real { pair } else { Cr3Pair { smod: smod.0, umod: umod.0, stale: true } }
    }

    fn was_asked(&self, request: Request) -> bool {
        self.requests.iter().any(|&(_, asked)| asked == request)
    }

    pub fn asked(&mut self, request: Request) {
        let now = self.caches.get_mut().tick();
        self.requests.push((now, request));
        if let (Some(Flaw::Entry), Request::Address(gva)) = (self.flaw, request) {
            self.stays = walk::shadow(self.smod, 4, walk::UNLIMITED, gva.0 >> 12, P | U);
        }
    }

    /// Looks at the D bits that the guest's writes have set, before L1 takes them.
    pub fn left(&mut self, vm: &Vm, mmu: &VcpuMmu) {
        for view in self.views(vm, mmu) {
            let Tag { cache, tables, .. } = self.caches.get_mut().tag(view.tag);
            for &page in &*tables {
                let clean = |&(_, leaf): &(Page, Leaf)| leaf.entry & (W | D) == W;
                let Some((start, leaf)) = cache.leaf(page).filter(clean) else { continue };
                let now = walk::shadow(view.root, 4, walk::UNLIMITED, page, P | U);
                if let Some(now) = now.filter(|now| now.entry & D != 0)
                    && Hpa(now.entry & ADDRESS) == leaf.frame(start, page)
                {
                    if self.flaw == Some(Flaw::DirtyBits) {
                        physmap::frame(now.at.0)[now.at.1].fetch_and(!D, AcqRel);
                    } else {
                        cache.set_dirty(page);
                    }
                }
            }
        }
    }

    /// A page fault drops what would have been used for its address.
    pub fn faulted(&mut self, gva: Gva, mode: Mode) {
        let tag = self.loaded[usize::from(mode == Mode::User)];
        self.caches.get_mut().drop_page(tag, gva.0 >> 12);
        self.mapped(gva);
    }

    pub fn mapped(&mut self, gva: Gva) {
        let page = gva.0 >> 12;
        self.touched.push(page);
        self.recent.push_back(page);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    pub fn judge(&mut self, vm: &Vm, mmu: &VcpuMmu) -> Result<(), Stop> {
        self.note_requests();
        let judged = self.judge_all(vm, mmu);
        self.requests.clear();
        self.touched.clear();
        judged.map_err(|broken| Stop::BrokenRule(broken.describe(vm, self.root)))
    }

    /// Remembers what the guest may rely on from now on.
    fn note_requests(&mut self) {
        self.counts.flushes += self.requests.len() as u64;
        for &(time, request) in &self.requests {
            match request {
                Request::All => self.all_flushed = time,
                Request::Load | Request::Current => {
                    for tag in self.loaded {
                        self.flushed[usize::from(tag)] = time;
                    }
                }
                Request::Address(gva) => {
                    if self.addresses.len() == ADDRESSES {
                        self.addresses.pop_front();
                    }
                    self.addresses.push_back((time, gva.0 >> 12));
                }
            }
        }
    }

    /// Both tags that are loaded.
    pub(super) fn views(&self, vm: &Vm, mmu: &VcpuMmu) -> [View; 2] {
        let roots = mmu.roots().expect("a running vCPU has a root");
        let (smod, umod) = vm.mmu.root_addresses(roots);
        [
            View { tag: self.loaded[0], root: smod, user: false },
            View { tag: self.loaded[1], root: umod, user: true },
        ]
    }

    pub fn counters(&self) -> [(&'static str, u64); 7] {
        let counts = &self.counts;
        [
            ("tlb_cached", counts.cached),
            ("tlb_kept", counts.kept),
            ("tlb_dropped", self.caches.borrow().dropped),
            ("tlb_flushes", counts.flushes),
            ("tlb_compared", counts.compared),
            ("tlb_inspected", counts.inspected),
            ("tlb_forgotten", counts.forgotten),
        ]
    }
}
