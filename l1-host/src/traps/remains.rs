//! Looks, after each exit, for words of guests that the switcher has left in its window, and counts
//! what is done when a CPU changes VM.
//! May: unsafe. Context: irq-off.
//!
//! Guests say what is to be looked for by what they hold: the canaries of `tests/conformance`.

#![expect(unsafe_code, reason = "the window's pages as they are")]

use crate::{hw::percpu::Cpu, log, mitigations::Actions};
use core::{
    fmt,
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};
use spin::Once;
use switcher::layout::{self, MAX_CPUS, area};

/// The word on a guest's command line that asks for it.
const WORD: &str = "roost.window-scan=on";
/// Line of the log with the result.
const PREFIX: &str = "@remains ";
/// The upper half of a canary.
const TAG: u64 = !0xa13b_185e & 0xffff_ffff;

static WANTED: AtomicBool = AtomicBool::new(false);
/// Exits after which the window was looked at.
static SCANS: AtomicU64 = AtomicU64::new(0);
/// Words in it that were a canary, and the first one's place and value.
static FOUND: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// The VM that each CPU ran last, as the scheduler sees it.
static LAST_VM: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// How often that changed.
static CHANGES: AtomicU64 = AtomicU64::new(0);
/// How often each step was taken.
static STEPS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
/// What is to be done.
static ACTIONS: Once<Actions> = Once::new();

/// What a CPU does between two VMs.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Beginning.
    Begin,
    /// Branch predictors are cleared.
    Barrier,
    /// The return stack is filled.
    Returns,
    /// The first-level data cache is emptied.
    FirstLevel,
    /// Buffers are cleared.
    Buffers,
}

/// Looks if a guest's command line asks for it.
pub fn choose(cmdline: &str) {
    if cmdline.split(' ').any(|word| word == WORD) {
        WANTED.store(true, SeqCst);
    }
}

/// VM `id` is about to run on `cpu`.
pub fn runs(cpu: &Cpu, id: u64) {
    if LAST_VM[cpu.index].swap(id, Relaxed) != id {
        CHANGES.fetch_add(1, Relaxed);
    }
}

/// A step was taken, by `actions`.
pub fn did(step: Step, actions: &Actions) {
    ACTIONS.call_once(|| *actions);
    STEPS[step as usize].fetch_add(1, Relaxed);
}

/// A guest was left on `cpu`: nothing of it is to be on the stacks and in the block of the window.
pub fn left(cpu: &Cpu) {
    if !WANTED.load(Relaxed) {
        return;
    }
    SCANS.fetch_add(1, Relaxed);
    let base = layout::area_base(cpu.index);
    for page in
        area::OWN_PAGES.into_iter().map(|(page, _)| page).filter(|&page| page >= area::BLOCK)
    {
        for word in 0..512 {
            let address = base + page + 8 * word;
            // SAFETY: these pages of the CPU's own area are mapped in L1's root, for good.
            let value = unsafe { (address as *const u64).read_volatile() };
            if value >> 32 == TAG && FOUND[0].fetch_add(1, Relaxed) == 0 {
                FOUND[1].store(address - base, Relaxed);
                FOUND[2].store(value, Relaxed);
            }
        }
    }
}

struct Line;

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [found, place, value] = FOUND.each_ref().map(|word| word.load(Relaxed));
        let [begun, barriers, returns, first_level, buffers] =
            STEPS.each_ref().map(|count| count.load(Relaxed));
        let wanted = ACTIONS.get().map(|actions| {
            [actions.branch_barrier, actions.fill_returns, actions.flush_l1d, actions.clear_buffers]
        });
        write!(f, "{{\"scans\":{},\"found\":{found}", SCANS.load(Relaxed))?;
        write!(f, ",\"place\":{place},\"value\":{value}")?;
        write!(f, ",\"vm_changes\":{},\"begun\":{begun}", CHANGES.load(Relaxed))?;
        write!(f, ",\"done\":[{barriers},{returns},{first_level},{buffers}]")?;
        write!(f, ",\"wanted\":{:?}}}", wanted.unwrap_or_default())
    }
}

/// Tells what was found.
pub fn report() {
    if WANTED.load(Relaxed) {
        log::raw(format_args!("{PREFIX}{Line}"));
    }
}
