//! Starts further CPUs and gives them work beside the boot CPU's.
//! May: unsafe, asm. Context: boot; any for work.
//!
//! A job is a closure that is shared with another CPU while `beside` runs; `beside` comes back only
//! when the job is done, so the closure may borrow. An idle CPU waits in HLT.
#![expect(unsafe_code, reason = "stacks, start-up code and closures for other CPUs")]

use super::{apic, boot, clock, cpu, idt, ram};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering::SeqCst};

/// Where the start-up code is copied to: a page below 1 MiB that loaders leave alone.
pub const TRAMPOLINE: u64 = 0x2_0000;
/// Further CPUs at most.
pub const MOST: usize = 2;
/// Pages of a stack.
const STACK_PAGES: u64 = 16;

const INIT: u32 = 0x4500;
const START_UP: u32 = 0x4600;
const FIXED: u32 = 0x4000;

/// A further CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu(usize);

type Job<'a> = &'a (dyn Fn() + Sync);

struct Slot {
    apic: AtomicU32,
    /// The job: points to a `Job`, null when there is none or it is done.
    job: AtomicPtr<()>,
    /// The CPU has seen the job.
    begun: AtomicBool,
}

static SLOTS: [Slot; MOST] = [const {
    Slot {
        apic: AtomicU32::new(0),
        job: AtomicPtr::new(core::ptr::null_mut()),
        begun: AtomicBool::new(false),
    }
}; MOST];
static STARTED: AtomicUsize = AtomicUsize::new(0);
static READY: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    static next_stack_top: AtomicU32;
}

/// Copies the start-up code to its place.
pub fn init() {
    let code = &raw const trampoline;
    let length = &raw const trampoline_end as usize - code as usize;
    // SAFETY: the page is RAM below 1 MiB, outside the image, the arena and what the loader wrote,
    // which has been read.
    unsafe { (TRAMPOLINE as *mut u8).copy_from_nonoverlapping(code, length) };
    assert!(boot::constants().start > TRAMPOLINE + ram::PAGE, "the image lies over it");
}

/// Starts CPUs with the APIC ids after ours, as many as there are and can be used. Returns how many.
pub fn start() -> usize {
    for index in 0..MOST {
        if !start_one(index, apic::id() + 1 + index as u32) {
            break;
        }
        STARTED.store(index + 1, SeqCst);
    }
    STARTED.load(SeqCst)
}

/// Further CPUs that have started.
pub fn count() -> usize {
    STARTED.load(SeqCst)
}

/// Further CPU `index`, if it was started.
pub fn cpu(index: usize) -> Option<Cpu> {
    (index < count()).then_some(Cpu(index))
}

fn start_one(index: usize, apic: u32) -> bool {
    let stack = ram::pages(STACK_PAGES) + STACK_PAGES * ram::PAGE;
    // SAFETY: only the CPU that is being started reads it.
    unsafe { &next_stack_top }.store(stack as u32, SeqCst);
    SLOTS[index].apic.store(apic, SeqCst);
    READY.store(false, SeqCst);
    apic::send(apic, INIT);
    wait(10_000, || false);
    for _ in 0..2 {
        apic::send(apic, START_UP | (TRAMPOLINE >> 12) as u32);
        if wait(100_000, || READY.load(SeqCst)) {
            return true;
        }
    }
    false
}

fn wait(microseconds: u64, until: impl Fn() -> bool) -> bool {
    let ticks = clock::microseconds(microseconds);
    let start = cpu::tsc();
    while !until() {
        if cpu::tsc() - start > ticks {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// First Rust function of a further CPU, called by `entry.S`.
#[unsafe(no_mangle)]
extern "C" fn second_cpu() -> ! {
    idt::load();
    apic::init();
    let slot = &SLOTS[STARTED.load(SeqCst)];
    READY.store(true, SeqCst);
    loop {
        x86_64::instructions::interrupts::disable();
        let job = slot.job.load(SeqCst);
        if job.is_null() {
            x86_64::instructions::interrupts::enable_and_hlt();
            continue;
        }
        slot.begun.store(true, SeqCst);
        // SAFETY: `beside` keeps the closure alive and shared until the slot is null again.
        let job: Job<'_> = unsafe { *job.cast::<Job<'_>>() };
        job();
        slot.job.store(core::ptr::null_mut(), SeqCst);
    }
}

/// Runs `job` on `cpu` and `here` on this one at the same time; returns when both are done.
pub fn beside<R>(cpu: Cpu, job: Job<'_>, here: impl FnOnce() -> R) -> R {
    let slot = &SLOTS[cpu.0];
    assert!(slot.job.load(SeqCst).is_null(), "the CPU has a job");
    slot.begun.store(false, SeqCst);
    slot.job.store((&raw const job).cast_mut().cast(), SeqCst);
    let apic = slot.apic.load(SeqCst);
    // An interrupt may get lost and stay in service (see `clock::nap`): then a higher one gets in.
    for vector in idt::WAKE {
        apic::send(apic, FIXED | u32::from(vector));
        if wait(50_000, || slot.begun.load(SeqCst)) {
            break;
        }
    }
    let result = here();
    while !slot.job.load(SeqCst).is_null() {
        core::hint::spin_loop();
    }
    result
}
