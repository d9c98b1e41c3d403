//! Interrupts that the guest has taken, in their order.

use crate::{
    abi::{self, pvcs},
    second,
};
use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use pv_abi::msr::x2apic;

const DEPTH: usize = 64;

/// What one vCPU has taken.
struct Taken {
    vectors: [AtomicU8; DEPTH],
    flags: [AtomicU64; DEPTH],
    count: AtomicUsize,
}

impl Taken {
    const fn new() -> Self {
        Self {
            vectors: [const { AtomicU8::new(0) }; DEPTH],
            flags: [const { AtomicU64::new(0) }; DEPTH],
            count: AtomicUsize::new(0),
        }
    }

    fn vector(&self, number: usize) -> u64 {
        let there = number < self.count.load(Acquire);
        if there { self.vectors[number % DEPTH].load(Relaxed).into() } else { 0 }
    }
}

static TAKEN: [Taken; 2] = [const { Taken::new() }; 2];
/// Handlers end the interrupt.
static ENDS: AtomicBool = AtomicBool::new(true);

/// Notes an interrupt and ends it.
pub fn handle(vector: u8) {
    let taken = &TAKEN[abi::vcpu()];
    if u64::from(vector) != second::WAKE {
        // Nobody else writes them.
        let number = taken.count.load(Relaxed);
        taken.vectors[number % DEPTH].store(vector, Relaxed);
        taken.flags[number % DEPTH].store(pvcs().event_flags(), Relaxed);
        taken.count.store(number + 1, Release);
    }
    if ENDS.load(Relaxed) {
        abi::wrmsr(x2apic::EOI, 0);
    }
}

/// Interrupts that this vCPU has taken so far.
pub fn count() -> usize {
    count_of(abi::vcpu())
}

/// Interrupts that `vcpu` has taken so far.
pub fn count_of(vcpu: usize) -> usize {
    TAKEN[vcpu].count.load(Acquire)
}

/// The vector of this vCPU's interrupt number `number`, one of the last 64; 0 if it has not come.
pub fn vector(number: usize) -> u64 {
    vector_of(abi::vcpu(), number)
}

/// PVCS.event_flags as the handler of that interrupt found them.
pub fn flags(number: usize) -> u64 {
    TAKEN[abi::vcpu()].flags[number % DEPTH].load(Relaxed)
}

/// The same of `vcpu`.
pub fn vector_of(vcpu: usize, number: usize) -> u64 {
    TAKEN[vcpu].vector(number)
}

/// Runs `body` with handlers that leave the end of interrupt to it.
pub fn without_eoi<T>(body: impl FnOnce() -> T) -> T {
    ENDS.store(false, Relaxed);
    let result = body();
    ENDS.store(true, Relaxed);
    result
}
