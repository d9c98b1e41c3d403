//! Runs functions on other vCPUs, interrupts them, and flushes what they know of page tables.
//! May: unsafe, take-frame. Context: any. Input: trusted.
#![expect(unsafe_code, reason = "hypercalls that start and flush vCPUs")]

use crate::{
    entry, frame,
    hypercall::{self, Error, Extension},
    local::Local,
};
use core::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use pv_abi::{
    PAGE_SIZE,
    ext::{Features, NativeBoot, call, window::MAX_VCPUS},
    hypercall as number,
};

/// A mask of all vCPUs: those that do not exist do not count.
pub const ALL: u64 = u64::MAX;

/// What each vCPU but the first was given when it was first started: its `Local` and stack.
static AREAS: [AtomicU64; MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VCPUS];
/// Somebody starts a vCPU.
static STARTING: AtomicBool = AtomicBool::new(false);
/// Some vCPU was started, so that flushes concern others.
static SEVERAL: AtomicBool = AtomicBool::new(false);

/// Has vCPU `vcpu`, which is off, call `function` with `argument`, on a stack of its own, with
/// interrupts disabled and the tables that the kernel was started with. When it returns, the vCPU is
/// off again and may be started anew. Its events go to the same handler as those of the first.
///
/// # Errors
/// [`Error::Invalid`]: there is no such vCPU, it is on, somebody else starts one just now, or no
/// memory is left for its stack. Others: the hypervisor cannot start any.
pub fn start(vcpu: usize, function: fn(u64), argument: u64) -> Result<(), Error> {
    if vcpu == 0 || vcpu >= MAX_VCPUS {
        return Err(Error::Invalid);
    }
    if STARTING.swap(true, Acquire) {
        return Err(Error::Invalid);
    }
    let started = start_alone(vcpu, function, argument);
    STARTING.store(false, Release);
    started
}

fn start_alone(vcpu: usize, function: fn(u64), argument: u64) -> Result<(), Error> {
    // SAFETY: calls that are refused otherwise, no other change.
    unsafe { Extension::enable(Features::SMP) }?;
    if is_on(vcpu)? {
        return Err(Error::Invalid);
    }
    if AREAS[vcpu].load(Relaxed) == 0 {
        let pages = (size_of::<Local>() + entry::STACK) / PAGE_SIZE;
        AREAS[vcpu].store(frame::take_range(pages as u64).ok_or(Error::Invalid)?, Relaxed);
    }
    let area = AREAS[vcpu].load(Relaxed);
    // SAFETY: zeroed memory of a `Local`'s size and alignment, which is this vCPU's for ever, and
    // which nobody uses while it is off.
    let local = unsafe { &*(area as *const Local) };
    local.function.store(function as usize as u64, Relaxed);
    local.argument.store(argument, Relaxed);
    local.letting_in.store(false, Relaxed);
    SEVERAL.store(true, Release);
    let start = &raw const entry::l2_guest_start_other as u64;
    let arguments = [vcpu as u64, start, area, NativeBoot::TABLES.0];
    // SAFETY: it begins with a stack of its own, in tables that map the kernel.
    number::result(unsafe { hypercall::call(call::VCPU_START, arguments) }).map(drop)
}

/// First Rust code of another vCPU.
pub(crate) extern "C" fn run_here(here: &'static Local) -> ! {
    // SAFETY: `start` has made it for this vCPU.
    unsafe { here.register() };
    // SAFETY: `start` has put the function there.
    let function =
        unsafe { core::mem::transmute::<usize, fn(u64)>(here.function.load(Relaxed) as usize) };
    function(here.argument.load(Relaxed));
    loop {
        hypercall::plain(call::VCPU_STOP);
    }
}

/// Whether vCPU `vcpu` was started, and has not come to the end of its function.
///
/// # Errors
/// There is no such vCPU, or none was started yet.
pub fn is_on(vcpu: usize) -> Result<bool, Error> {
    // SAFETY: a question changes nothing.
    let state = unsafe { hypercall::call(call::VCPU_STATE, [vcpu as u64, 0, 0, 0]) };
    number::result(state).map(|state| state == 1)
}

/// The number of the vCPU that runs this: the one of its local APIC.
#[must_use]
pub fn current() -> usize {
    hypercall::rdmsr(pv_abi::msr::x2apic::ID) as usize
}

/// Requests interrupt `vector` of the vCPUs in `mask`: bit n for vCPU n. Those that are off drop it.
///
/// # Errors
/// No vCPU was started yet.
///
/// # Panics
/// The vector is one of an exception.
pub fn send_ipi(mask: u64, vector: u8) -> Result<(), Error> {
    assert!(vector >= 32, "vector {vector} is an exception's");
    // SAFETY: the kernel's handler takes it.
    let sent = unsafe { hypercall::call(call::SEND_IPI, [mask, vector.into(), 0, 0]) };
    number::result(sent).map(drop)
}

/// Flushes the translations of one address on all vCPUs: afterwards none uses an old one.
pub fn flush_page(address: u64) {
    if !SEVERAL.load(Acquire) {
        return hypercall::flush_page(address);
    }
    // SAFETY: a flush changes nothing but what CPUs remember of the tables.
    unsafe { hypercall::call(call::FLUSH_VCPUS, [ALL, address, 0, 0]) };
}

/// Flushes all translations on all vCPUs.
pub fn flush() {
    if !SEVERAL.load(Acquire) {
        return hypercall::flush();
    }
    // SAFETY: as above.
    unsafe { hypercall::call(call::FLUSH_VCPUS, [ALL, call::FLUSH_ALL, 0, 0]) };
}

/// Lets others run that share the CPU with this vCPU: for loops that wait for one of them.
pub fn yield_now() {
    hypercall::plain(call::YIELD);
}
