//! Freeing pages that another vCPU may still walk.
//!
//! One operation is one visit to L1: an exit and an entry. Every 16th visit asks for what can be
//! freed, every 64th retires a page.

use super::{Alternative, RECLAIM};
use crate::threads::{Phased, Rounds};
use crossbeam_epoch::{Collector, LocalHandle};
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Visits of a phase.
const VISITS: u64 = 4096;
const ASKS_EVERY: u64 = 16;
const RETIRES_EVERY: u64 = 64;

/// Pages freed. A word for all, as the list of free pages is.
static FREED: AtomicU64 = AtomicU64::new(0);

/// A way to defer freeing.
trait Reclaim: Sync {
    /// What a vCPU has to itself.
    type Vcpu;
    fn new(vcpus: usize) -> Self;
    fn vcpu(&self, index: usize) -> Self::Vcpu;
    /// What happens at exit and entry, and what is done in between.
    fn visit(&self, vcpu: &mut Self::Vcpu, retired: Option<u64>, ask: bool);
    /// The vCPU ends.
    fn idle(&self, vcpu: Self::Vcpu);
}

/// The MMU's: the epoch of each vCPU's last entry, one word each (`W`), and a list of the retired.
struct Epochs<W> {
    epoch: AtomicU64,
    seen: Box<[W]>,
    retired: spin::Mutex<Vec<(u64, u64)>>,
}

/// A vCPU's word, padded or not.
trait Word: Sync {
    fn new() -> Self;
    fn word(&self) -> &AtomicU64;
}

impl Word for AtomicU64 {
    fn new() -> Self {
        Self::new(u64::MAX)
    }

    fn word(&self) -> &AtomicU64 {
        self
    }
}

impl Word for CachePadded<AtomicU64> {
    fn new() -> Self {
        Self::new(AtomicU64::new(u64::MAX))
    }

    fn word(&self) -> &AtomicU64 {
        self
    }
}

impl<W: Word> Reclaim for Epochs<W> {
    type Vcpu = usize;

    fn new(vcpus: usize) -> Self {
        Self {
            epoch: AtomicU64::new(0),
            seen: (0..vcpus).map(|_| W::new()).collect(),
            retired: spin::Mutex::default(),
        }
    }

    fn vcpu(&self, index: usize) -> usize {
        index
    }

    fn visit(&self, vcpu: &mut usize, retired: Option<u64>, ask: bool) {
        if let Some(page) = retired {
            self.retired.lock().push((self.epoch.load(Relaxed), page));
        }
        if ask {
            self.ask();
        }
        self.seen[*vcpu].word().store(self.epoch.load(Relaxed), Relaxed);
    }

    fn idle(&self, vcpu: usize) {
        self.seen[vcpu].word().store(u64::MAX, Relaxed);
    }
}

impl<W: Word> Epochs<W> {
    fn ask(&self) {
        let mut retired = self.retired.lock();
        if retired.is_empty() {
            return;
        }
        self.epoch.fetch_add(1, Relaxed);
        let passed = self.seen.iter().map(|seen| seen.word().load(Relaxed)).min();
        let before = retired.len();
        retired.retain(|&(epoch, _)| Some(epoch) >= passed);
        FREED.fetch_add((before - retired.len()) as u64, Relaxed);
    }
}

/// crossbeam-epoch: pinned while in L1.
struct Crossbeam(Collector);

impl Reclaim for Crossbeam {
    type Vcpu = LocalHandle;

    fn new(_: usize) -> Self {
        Self(Collector::new())
    }

    fn vcpu(&self, _: usize) -> LocalHandle {
        self.0.register()
    }

    fn visit(&self, vcpu: &mut LocalHandle, retired: Option<u64>, ask: bool) {
        let guard = vcpu.pin();
        if let Some(page) = retired {
            guard.defer(move || FREED.fetch_add(page & 1, Relaxed));
        }
        if ask {
            guard.flush();
        }
    }

    fn idle(&self, vcpu: LocalHandle) {
        drop(vcpu);
    }
}

/// The mix.
struct Mix<R>(R);

impl<R: Reclaim> Mix<R> {
    fn boxed(threads: usize) -> Box<dyn Rounds>
    where
        R: 'static,
    {
        Box::new(Self(R::new(threads)))
    }
}

impl<R: Reclaim> Phased for Mix<R> {
    type Lane = R::Vcpu;
    const PHASES: usize = 1;

    fn lane(&self, index: usize, _: usize) -> R::Vcpu {
        self.0.vcpu(index)
    }

    fn phase(&self, vcpu: &mut R::Vcpu, _: usize) -> u64 {
        for visit in 0..VISITS {
            let retired = (visit % RETIRES_EVERY == 0).then_some(visit);
            self.0.visit(vcpu, retired, visit % ASKS_EVERY == 0);
        }
        VISITS
    }

    fn end(&self, vcpu: R::Vcpu) {
        self.0.idle(vcpu);
    }
}

pub(super) fn alternatives() -> Vec<Alternative> {
    let way = |name, make| Alternative { part: RECLAIM, name, make };
    vec![
        way(
            "epochs, a cache line for each vCPU (present)",
            Mix::<Epochs<CachePadded<AtomicU64>>>::boxed,
        ),
        way("the same, words side by side", Mix::<Epochs<AtomicU64>>::boxed),
        way("crossbeam-epoch", Mix::<Crossbeam>::boxed),
    ]
}
