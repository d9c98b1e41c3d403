//! What others may do to a vCPU: request interrupts and flushes, wake it, start it.
//! May: nothing. Context: irq-off. Input: guest-controlled vectors and addresses.
//!
//! Whoever wants something leaves it here first and looks at where the vCPU is afterwards; a vCPU says
//! where it is first and looks here afterwards. So one of the two sees the other, and nothing is lost.

use super::Vcpu;
use crate::{sched, stats::Counts};
use alloc::boxed::Box;
use arrayvec::ArrayVec;
use core::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};
use pv_abi::{addr::Gva, ext::window::MAX_VCPUS};
use spin::Mutex;

/// Single addresses that may wait to be flushed; one more, and everything is.
const ADDRESSES: usize = 8;

/// Who has a vCPU.
#[derive(Debug)]
pub enum Place {
    /// Nobody, and nothing wakes it: it was not started, or has stopped itself.
    Off(Box<Vcpu>),
    /// A run queue, or the CPU that brings it there.
    Queued,
    /// The CPU with this number.
    On(usize),
    /// Nobody: it waits for an interrupt.
    Parked(Box<Vcpu>),
    /// It is not built yet, or its guest has ended.
    Gone,
}

/// What is to be flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Every address space.
    All,
    /// One address.
    Address(Gva),
}

/// The side of a vCPU that all CPUs see.
#[derive(Debug)]
pub struct Remote {
    requested: [AtomicU64; 4],
    any_requested: AtomicBool,
    /// Odd while the guest runs, or is about to.
    presence: AtomicU64,
    /// How often something was to be flushed.
    flushes: AtomicU64,
    all: AtomicBool,
    addresses: Mutex<ArrayVec<Gva, ADDRESSES>>,
    pub(crate) place: Mutex<Place>,
    cpu: AtomicUsize,
    /// Its exits, if somebody wants to know while it runs.
    pub(crate) counts: Counts,
}

impl Remote {
    /// That of a vCPU which is not built yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            requested: [const { AtomicU64::new(0) }; 4],
            any_requested: AtomicBool::new(false),
            presence: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            all: AtomicBool::new(false),
            addresses: Mutex::new(ArrayVec::new_const()),
            place: Mutex::new(Place::Gone),
            cpu: AtomicUsize::new(0),
            counts: Counts::new(),
        }
    }

    /// Leaves an interrupt request; false if the same one was there already, so that the vCPU knows or
    /// will be told.
    pub fn request(&self, vector: u8) -> bool {
        let (word, bit) = (&self.requested[usize::from(vector / 64)], 1 << (vector % 64));
        let new = word.fetch_or(bit, SeqCst) & bit == 0;
        self.any_requested.store(true, SeqCst);
        new
    }

    /// Has the vCPU look at what is outside, though no interrupt is requested here.
    pub fn have_look(&self) {
        self.any_requested.store(true, SeqCst);
    }

    /// Calls `raise` with each interrupt that was requested.
    pub fn take_requests(&self, mut raise: impl FnMut(u8)) {
        if !self.any_requested.swap(false, SeqCst) {
            return;
        }
        for (index, word) in self.requested.iter().enumerate() {
            let mut bits = word.swap(0, SeqCst);
            while bits != 0 {
                raise((64 * index) as u8 + bits.trailing_zeros() as u8);
                bits &= bits - 1;
            }
        }
    }

    /// Something is requested, or it is to look.
    pub fn is_requested(&self) -> bool {
        self.any_requested.load(SeqCst)
    }

    /// The vCPU is queued.
    pub fn queued(&self) {
        *self.place.lock() = Place::Queued;
    }

    /// The vCPU is on CPU `cpu` from now on.
    pub fn arrive(&self, cpu: usize) {
        self.cpu.store(cpu, SeqCst);
        *self.place.lock() = Place::On(cpu);
    }

    /// Where it ran last.
    pub fn last_cpu(&self) -> usize {
        self.cpu.load(Relaxed)
    }

    /// The guest is about to run: from here on a flush that is asked for waits until it has been left.
    #[inline]
    pub fn enter(&self) {
        self.presence.fetch_add(1, SeqCst);
    }

    /// The guest has been left, or was not entered after all.
    #[inline]
    pub fn leave(&self) {
        // Nobody else writes it.
        self.presence.store(self.presence.load(Relaxed) + 1, Release);
    }

    /// How often something was to be flushed: a vCPU that has seen fewer must flush before it runs.
    #[inline]
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Acquire)
    }

    /// Asks for a flush of the CPU's translations. [`shoot_down`] must follow.
    pub fn flush_translations(&self) {
        self.flushes.fetch_add(1, SeqCst);
    }

    /// Asks for a flush as the guest means it. [`shoot_down`] must follow.
    pub fn flush(&self, what: Flush) {
        let full = match what {
            Flush::All => true,
            Flush::Address(gva) => self.addresses.lock().try_push(gva).is_err(),
        };
        if full {
            self.all.store(true, Release);
        }
        self.flushes.fetch_add(1, SeqCst);
    }

    /// Takes what was asked for: a flush of everything, or of single addresses.
    pub fn take_flushes(&self) -> (bool, ArrayVec<Gva, ADDRESSES>) {
        let all = self.all.swap(false, AcqRel);
        (all, core::mem::take(&mut *self.addresses.lock()))
    }
}

impl Default for Remote {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits until none of `remotes`, which were asked to flush, runs its guest with what it had before.
/// One that is not running is not disturbed: it flushes as it enters.
///
/// The caller is in L1, and so does not wait for itself; a CPU that waits here is waited for by nobody.
pub fn shoot_down<'a>(remotes: impl Iterator<Item = &'a Remote>) {
    let mut waited = ArrayVec::<(&Remote, u64), MAX_VCPUS>::new();
    for remote in remotes {
        let presence = remote.presence.load(SeqCst);
        if presence % 2 == 1 {
            sched::kick(remote.cpu.load(SeqCst));
            waited.push((remote, presence));
        }
    }
    for (remote, presence) in waited {
        while remote.presence.load(Acquire) == presence {
            core::hint::spin_loop();
        }
    }
}
