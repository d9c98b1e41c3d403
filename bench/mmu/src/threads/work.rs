//! Pages faulted in and zapped by several vCPUs: in tables of their own, or in the same ones.

use super::Phased;
use crate::{
    bed::{BITS, DATA, Page, SIZE, STRIDE, map},
    design::{Design, READ},
    guest::Tables,
    host::Host,
};
use pv_abi::addr::{Gfn, Gva};
use shadow_mmu::Outcome;

/// Pages of each vCPU.
const PAGES: u64 = 2048;

/// What the vCPUs have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nothing: each has an MMU and a VM to itself.
    Nothing,
    /// The MMU. Each runs a process of its own.
    Mmu,
    /// The MMU and the process: neighbouring faults are different vCPUs'. The frames behind them
    /// are in an order of this kind.
    Process(Frames),
}

/// Which frames the vCPUs of one process get. Reverse maps of four neighbouring frames share a
/// cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Each vCPU has a range of its own, as when each takes free frames in batches.
    Batches,
    /// No order at all.
    Shuffled,
    /// Neighbouring pages, and so different vCPUs, have neighbouring frames: as bad as it gets.
    Neighbours,
}

/// How often the faulting vCPUs flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushes {
    /// Never.
    No,
    /// After every so many faults. Nothing has changed then.
    Every(usize),
}

/// One process, and the number of its VM's MMU.
#[derive(Debug)]
struct Process {
    mmu: usize,
    root: Gfn,
    pages: Vec<Page>,
}

/// Faults and zaps on MMU `M`.
#[derive(Debug)]
pub struct Work<M: Design> {
    mmus: Vec<M>,
    processes: Vec<Process>,
    sharing: Sharing,
    flushes: Flushes,
}

/// The state of a thread: its process, vCPU and pages.
#[derive(Debug)]
pub struct Lane<M: Design> {
    process: usize,
    vcpu: M::Vcpu,
    pages: Vec<Page>,
}

impl<M: Design> Work<M> {
    /// Work for up to `threads` threads.
    #[must_use]
    pub fn new(sharing: Sharing, flushes: Flushes, threads: usize) -> Self {
        let vms = if sharing == Sharing::Nothing { threads } else { 1 };
        let (mut mmus, mut processes) = (Vec::new(), Vec::new());
        for vm in 0..vms {
            let host = Host::new(SIZE);
            let mut tables = Tables::new(&host);
            let here = if sharing == Sharing::Mmu { threads as u64 } else { 1 };
            for index in 0..here {
                let root = tables.root(&host);
                let pages = match sharing {
                    Sharing::Nothing | Sharing::Mmu => PAGES,
                    Sharing::Process(_) => PAGES * threads as u64,
                };
                let frames = DATA + index * PAGES;
                let range = (Gva(0), pages, STRIDE);
                let mut pages = map(&mut tables, &host, root, range, BITS, frames);
                if let Sharing::Process(frames) = sharing {
                    for (index, page) in pages.iter_mut().enumerate() {
                        page.gfn = frames.frame(index as u64, threads as u64);
                        tables.map(&host, root, page.gva, page.gfn, BITS);
                    }
                }
                processes.push(Process { mmu: vm, root, pages });
            }
            mmus.push(M::new(host, threads));
        }
        Self { mmus, processes, sharing, flushes }
    }

    fn mmu(&self, lane: &Lane<M>) -> &M {
        &self.mmus[self.processes[lane.process].mmu]
    }

    fn fill(&self, lane: &mut Lane<M>) {
        let mmu = self.mmu(lane);
        for (index, page) in lane.pages.iter().enumerate() {
            let outcome = mmu.fault(&mut lane.vcpu, page.gva, READ);
            assert!(outcome == Outcome::Mapped, "a fault at {} gave {outcome:?}", page.gva);
            mmu.entering(&lane.vcpu);
            if let Flushes::Every(faults) = self.flushes
                && index % faults == 0
            {
                mmu.flush(&mut lane.vcpu);
            }
        }
    }
}

impl Frames {
    /// The frame of page `index` of a process of so many threads.
    fn frame(self, index: u64, threads: u64) -> Gfn {
        let frame = match self {
            Self::Batches => index % threads * PAGES + index / threads,
            // An odd factor permutes what is counted by a power of two.
            Self::Shuffled => {
                index.wrapping_mul(0x9e37_79b1) % (PAGES * threads).next_power_of_two()
            }
            Self::Neighbours => index,
        };
        Gfn(DATA + frame)
    }
}

impl<M: Design> Phased for Work<M> {
    type Lane = Lane<M>;
    /// Faults; zaps.
    const PHASES: usize = 2;

    fn lane(&self, index: usize, threads: usize) -> Lane<M> {
        let (process, pages) = match self.sharing {
            Sharing::Nothing | Sharing::Mmu => (index, self.processes[index].pages.clone()),
            Sharing::Process(_) => {
                let all = self.processes[0].pages.iter().copied();
                // Each does as much as it would alone, in the same tables.
                let mine = all.skip(index).step_by(threads).take(PAGES as usize);
                (0, mine.collect())
            }
        };
        let mmu = &self.mmus[self.processes[process].mmu];
        let mut vcpu = mmu.vcpu(index);
        assert!(mmu.load_root(&mut vcpu, self.processes[process].root), "a root is loaded");
        mmu.entering(&vcpu);
        Lane { process, vcpu, pages }
    }

    fn phase(&self, lane: &mut Lane<M>, phase: usize) -> u64 {
        if phase == 0 {
            self.fill(lane);
        } else {
            for page in &lane.pages {
                self.mmu(lane).zap_frame(page.gfn);
            }
        }
        lane.pages.len() as u64
    }

    fn end(&self, lane: Lane<M>) {
        self.mmus[self.processes[lane.process].mmu].end(lane.vcpu);
    }
}
