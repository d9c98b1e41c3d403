//! The second vCPU: starting it with something to do, and waiting for it.
#![expect(unsafe_code, reason = "a function's address goes through a word")]

use crate::{
    abi::{self, tsc, wrmsr},
    clock, entry, extension, paging,
    tap::{Verdict, equal, holds, skip},
    timer,
};
use core::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use pv_abi::{
    ext::{Features, call},
    hypercall as nr,
    msr::x2apic,
};

/// Its number.
pub const INDEX: usize = 1;
/// The argument that it is started with.
pub const ARGUMENT: u64 = 0x1234_5678_9abc_def0;

/// What it does, and whether it registers its entries before.
static JOB: AtomicUsize = AtomicUsize::new(0);
static BARE: AtomicBool = AtomicBool::new(false);
/// It is to come to an end.
static QUIT: AtomicBool = AtomicBool::new(false);
/// Time is a busy host's.
static PATIENT: AtomicBool = AtomicBool::new(false);
/// How far it has come.
static STAGE: AtomicUsize = AtomicUsize::new(0);

/// Skips a check where there is none that could be started.
pub fn needed() -> Verdict {
    extension::enable(Features::SMP)?;
    if entry::boot().vcpus < 2 { skip("this VM has one vCPU") } else { Ok(()) }
}

/// VCPU_START of the second vCPU.
pub fn start_at(entry: u64) -> u64 {
    abi::call(call::VCPU_START, [INDEX as u64, entry, ARGUMENT, paging::cr3(0)])
}

/// Where it starts.
pub fn entry() -> u64 {
    &raw const entry::second_start as u64
}

fn begin(job: fn(), bare: bool) -> Verdict {
    JOB.store(job as usize, Relaxed);
    BARE.store(bare, Relaxed);
    QUIT.store(false, Relaxed);
    STAGE.store(0, Release);
    equal("VCPU_START", start_at(entry()), 0)
}

/// Has it do `job`, and stop afterwards.
pub fn start(job: fn()) -> Verdict {
    needed()?;
    begin(job, false)
}

/// Has it do `job` to the end.
pub fn run(job: fn()) -> Verdict {
    start(job)?;
    ended()
}

/// The same without entries and a PVCS: nothing may be delivered to it.
pub fn run_bare(job: fn()) -> Verdict {
    needed()?;
    begin(job, true)?;
    ended()
}

/// First Rust code there.
pub fn main() -> ! {
    if !BARE.load(Relaxed) {
        abi::init();
        // Whatever it waits for, the first check that fails must not be the last that is made.
        wrmsr(x2apic::TIMER_DIVIDE, timer::BY_ONE);
        wrmsr(x2apic::LVT_TIMER, timer::PERIODIC | WAKE);
        wrmsr(x2apic::TIMER_INITIAL, clock::tsc_hz().min(u32::MAX.into()));
    }
    // SAFETY: `begin` has put it there, before it started this vCPU.
    let job = unsafe { core::mem::transmute::<usize, fn()>(JOB.load(Acquire)) };
    job();
    stop()
}

/// VCPU_STOP.
pub fn stop() -> ! {
    abi::call(call::VCPU_STOP, [0; 4]);
    panic!("VCPU_STOP came back")
}

/// The job has come to `stage`.
pub fn reached(stage: usize) {
    STAGE.store(stage, Release);
}

/// Where the job is.
pub fn stage() -> usize {
    STAGE.load(Acquire)
}

/// Waits until the job has come to `stage`.
pub fn wait_for(stage: usize) -> Verdict {
    holds("the second vCPU goes on", wait(|| self::stage() >= stage))
}

/// The job is to end: each that waits for something looks.
pub fn quits() -> bool {
    QUIT.load(Relaxed)
}

/// Waits until `ready`, and lets the other vCPU run if it shares a CPU with this one; true if it
/// was, false after a tenth of a second, or more if this vCPU has hardly run in it.
pub fn wait(ready: impl Fn() -> bool) -> bool {
    let limit = if patient() { 20 * clock::tsc_hz() } else { clock::tsc_hz() / 10 };
    let start = tsc();
    loop {
        if wait_for_rounds(20_000, &ready) {
            return true;
        }
        if tsc() - start > limit {
            return false;
        }
    }
}

fn wait_for_rounds(rounds: u32, ready: impl Fn() -> bool) -> bool {
    for _ in 0..rounds {
        if ready() {
            return true;
        }
        abi::call(call::YIELD, [0; 4]);
    }
    ready()
}

/// From now on it may take long until another vCPU goes on.
pub fn be_patient() {
    PATIENT.store(true, Relaxed);
}

/// Whether it may.
pub fn patient() -> bool {
    PATIENT.load(Relaxed)
}

/// Waits until it is off.
pub fn ended() -> Verdict {
    holds("the second vCPU stops", wait(is_off))
}

/// VCPU_STATE says so.
pub fn is_off() -> bool {
    abi::call1(call::VCPU_STATE, INDEX as u64) == 0
}

/// After a check: whatever it does, it comes to an end.
pub fn quit() {
    if !extension::present()
        || !extension::enabled().contains(Features::SMP)
        || entry::boot().vcpus < 2
        || is_off()
    {
        return;
    }
    QUIT.store(true, Relaxed);
    // It may wait for an interrupt.
    abi::call(call::SEND_IPI, [1 << INDEX, WAKE, 0, 0]);
    // If that does not come, its timer does. Where nobody does anything, time goes fast.
    let halted = || timer::armed(10_000, || abi::call(nr::IRQ_HALT, [0; 4]));
    let ends = wait_for_rounds(2000, is_off)
        || (0..400).any(|_| {
            halted();
            is_off()
        });
    assert!(ends, "the second vCPU does not stop");
    // What it has requested of this one is nobody's business any more.
    abi::pvcs().enable_interrupts();
    abi::pvcs().disable_interrupts();
}

/// Vector of the interrupt that wakes it at the end, and once a second. It is not noted.
pub const WAKE: u64 = 0xf1;
