//! The second vCPU: has it do something while the first attacks, or attack while the first does.
//! May: unsafe. Context: any. Input: trusted.
#![expect(unsafe_code, reason = "a function's address goes through a word")]

use super::{abi, entry, memory, trial};
use crate::judge::Rounds;
use core::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use pv_abi::ext::{Features, NativeBoot, call};
use suite::{holds, random::Random, same, skip, verdict::Verdict};

/// Its number.
pub const INDEX: u64 = 1;
/// What it does again and again.
pub type Job = fn(&mut Random) -> Verdict;

/// Seconds that it may take to start or stop: it may share its CPU with other guests.
const PATIENCE: u64 = 100;

static VCPUS: AtomicU64 = AtomicU64::new(0);
static LIMIT: AtomicU64 = AtomicU64::new(0);
static JOB: AtomicUsize = AtomicUsize::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
static ENDING: AtomicBool = AtomicBool::new(false);
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// Keeps how many vCPUs there are and how long to wait for them.
pub fn init(boot: &NativeBoot) {
    VCPUS.store(boot.vcpus.into(), Relaxed);
    LIMIT.store(PATIENCE * boot.tsc_hz, Relaxed);
}

/// Skips an attack where there is none that could be started.
pub fn needed() -> Verdict {
    if VCPUS.load(Relaxed) < 2 {
        return skip!("this VM has one vCPU");
    }
    same!(abi::call1(call::ENABLE, Features::SMP.bits().into()), 0, "ENABLE of SMP");
    Ok(())
}

/// VCPU_START.
pub fn start(vcpu: u64, entry: u64, argument: u64, root: u64) -> u64 {
    abi::call(call::VCPU_START, [vcpu, entry, argument, root])
}

/// Waits until `ready`.
pub fn wait(what: &str, mut ready: impl FnMut() -> bool) -> Verdict {
    let start = abi::tsc();
    while !ready() {
        holds!(abi::tsc() - start < LIMIT.load(Relaxed), "the second vCPU {what}");
        abi::call(call::YIELD, [0; 4]);
    }
    Ok(())
}

/// VCPU_STATE says that it is off.
pub fn is_off() -> bool {
    abi::call1(call::VCPU_STATE, INDEX) == 0
}

/// Makes the rounds of `body` while the second vCPU does `job` again and again.
pub fn beside(rounds: &mut Rounds, job: Job, body: impl FnOnce(&mut Rounds) -> Verdict) -> Verdict {
    needed()?;
    memory::admit_second();
    JOB.store(job as usize, Relaxed);
    SEED.store(rounds.random.bits(), Relaxed);
    ROUNDS.store(0, Relaxed);
    ENDING.store(false, Release);
    let entry = &raw const entry::second_start as u64;
    same!(start(INDEX, entry, 0, memory::kernel_root()), 0, "VCPU_START");
    let verdict = wait("starts", || made() > 0).and_then(|()| body(rounds));
    ENDING.store(true, Release);
    wait("stops", is_off)?;
    verdict?;
    // Once for every thousand rounds here is little, but it may share a CPU.
    holds!(made() > rounds.count / 1000, "the second vCPU made {} rounds", made());
    Ok(())
}

/// Now and then lets it run, or waits until it has done something: the two may share a CPU, or the
/// host is busy.
pub fn meet(random: &mut Random) -> Verdict {
    match random.below(32) {
        0 => {
            let before = made();
            wait("goes on", || made() != before)
        }
        1..4 => {
            abi::call(call::YIELD, [0; 4]);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Rounds that it has made.
pub fn made() -> u64 {
    ROUNDS.load(Acquire)
}

/// For the next attack.
pub fn reset() {
    ROUNDS.store(0, Relaxed);
}

/// First Rust code there.
pub extern "C" fn main() -> ! {
    abi::restore();
    // SAFETY: `beside` has put it there, before it started this vCPU.
    let job = unsafe { core::mem::transmute::<usize, Job>(JOB.load(Acquire)) };
    let mut random = Random::new(SEED.load(Relaxed));
    while !ENDING.load(Acquire) {
        if let Err(wrong) = job(&mut random) {
            panic!("on the second vCPU: {wrong}");
        }
        ROUNDS.fetch_add(1, Release);
        // The first may wait for this, and for the CPU.
        abi::call(call::YIELD, [0; 4]);
    }
    abi::restore();
    trial::drain();
    stop()
}

/// VCPU_STOP.
pub fn stop() -> ! {
    abi::call(call::VCPU_STOP, [0; 4]);
    panic!("VCPU_STOP came back")
}
