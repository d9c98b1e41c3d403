//! Which VM the threads of a core run, where they are to run one at a time.
//! May: nothing. Context: irq-off.
//!
//! A core belongs to the VM whose vCPU enters it first, until all its threads have left it. A VM that was
//! refused has it next: until then nobody else enters, and those that run leave at the end of their
//! slices.

use arrayvec::ArrayVec;
use core::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use spin::Mutex;
use switcher::layout::MAX_CPUS;

const _: () = assert!(MAX_CPUS <= 64, "CPUs are bits of a word");

/// VMs have numbers; this is none's.
const NOBODY: u64 = 0;

#[derive(Clone, Copy, Debug)]
struct Core {
    /// Whose it is.
    vm: u64,
    /// Threads that run it.
    running: usize,
    /// Who was refused first since.
    next: u64,
}

/// All cores.
#[derive(Debug)]
pub struct Cores {
    /// The CPU's own numbers of cores, by ours.
    numbers: Mutex<ArrayVec<u32, MAX_CPUS>>,
    cores: [Mutex<Core>; MAX_CPUS],
    /// Threads, by core: CPUs as bits.
    threads: [AtomicU64; MAX_CPUS],
    /// Cores, by CPU.
    core_of: [AtomicUsize; MAX_CPUS],
}

impl Cores {
    /// No CPU takes part.
    #[must_use]
    pub const fn new() -> Self {
        const IDLE: Core = Core { vm: NOBODY, running: 0, next: NOBODY };
        Self {
            numbers: Mutex::new(ArrayVec::new_const()),
            cores: [const { Mutex::new(IDLE) }; MAX_CPUS],
            threads: [const { AtomicU64::new(0) }; MAX_CPUS],
            core_of: [const { AtomicUsize::new(0) }; MAX_CPUS],
        }
    }

    /// `cpu` is a thread of the core with this `number`.
    pub fn join(&self, cpu: usize, number: u32) {
        let mut numbers = self.numbers.lock();
        let known = numbers.iter().position(|&other| other == number);
        let core = known.unwrap_or(numbers.len());
        if known.is_none() {
            numbers.push(number);
        }
        self.core_of[cpu].store(core, Relaxed);
        self.threads[core].fetch_or(1 << cpu, SeqCst);
    }

    fn of(&self, cpu: usize) -> &Mutex<Core> {
        &self.cores[self.core_of[cpu].load(Relaxed)]
    }

    /// The other threads of the core of `cpu`, as bits.
    pub fn beside(&self, cpu: usize) -> u64 {
        self.threads[self.core_of[cpu].load(Relaxed)].load(SeqCst) & !(1 << cpu)
    }

    /// The same, one after another.
    pub fn siblings(&self, cpu: usize) -> impl Iterator<Item = usize> + use<> {
        let threads = self.beside(cpu);
        (0..MAX_CPUS).filter(move |&other| threads & 1 << other != 0)
    }

    /// True if `cpu` may run `vm`, and then it does until it leaves.
    #[must_use]
    pub fn enter(&self, cpu: usize, vm: u64) -> bool {
        let mut core = self.of(cpu).lock();
        let waited = core.next != NOBODY && core.next != vm;
        let enters = !waited && (core.running == 0 || core.vm == vm);
        if enters {
            core.next = NOBODY;
            core.vm = vm;
            core.running += 1;
        } else if core.vm != vm && core.next == NOBODY {
            core.next = vm;
        }
        enters
    }

    /// What `cpu` ran it runs no longer.
    pub fn leave(&self, cpu: usize) {
        let mut core = self.of(cpu).lock();
        core.running = core.running.saturating_sub(1);
    }

    /// Somebody else is to have the core of `cpu`.
    #[cold]
    #[must_use]
    pub fn is_wanted(&self, cpu: usize) -> bool {
        self.of(cpu).lock().next != NOBODY
    }

    /// Whoever was to have the core of `cpu`, which nobody runs on, is not there any more; true if somebody
    /// was.
    #[must_use]
    pub fn forget_next(&self, cpu: usize) -> bool {
        let mut core = self.of(cpu).lock();
        core.running == 0 && core::mem::take(&mut core.next) != NOBODY
    }
}

impl Default for Cores {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPUs 0 and 2, 1 and 3 are siblings.
    fn cores() -> Cores {
        let cores = Cores::new();
        for (cpu, number) in [(3, 9), (0, 4), (1, 9), (2, 4)] {
            cores.join(cpu, number);
        }
        cores
    }

    #[test]
    fn threads_of_a_core_run_one_vm() {
        let cores = cores();
        assert_eq!(cores.siblings(0).collect::<Vec<_>>(), [2]);
        assert_eq!(cores.siblings(3).collect::<Vec<_>>(), [1]);
        assert!(cores.enter(0, 7) && cores.enter(2, 7));
        assert!(!cores.enter(2, 8), "one that is busy");
        assert!(cores.enter(1, 8), "another core");
    }

    #[test]
    fn who_was_refused_is_next() {
        let cores = cores();
        assert!(cores.enter(0, 7));
        assert!(!cores.is_wanted(0));
        assert!(!cores.enter(2, 8) && cores.is_wanted(0));
        assert!(!cores.enter(2, 7), "7 does not go on for ever");
        assert!(!cores.enter(2, 9), "nor does 9 come first");
        cores.leave(0);
        assert!(!cores.enter(0, 7) && !cores.enter(0, 9));
        assert!(cores.enter(0, 8) && !cores.is_wanted(0));
        assert!(cores.enter(2, 8));
    }

    #[test]
    fn who_is_gone_is_not_waited_for() {
        let cores = cores();
        assert!(cores.enter(0, 7) && !cores.enter(2, 8));
        assert!(!cores.forget_next(2), "7 runs");
        cores.leave(0);
        assert!(!cores.enter(0, 7));
        assert!(cores.forget_next(0) && !cores.forget_next(0));
        assert!(cores.enter(0, 7));
    }

    /// However threads enter and leave, two VMs are never on one core, and each gets its turn.
    #[test]
    fn turns_are_taken_and_nothing_is_mixed() {
        let cores = cores();
        let mut random = 1_u64;
        let mut on = [None::<u64>; 4];
        let mut turns = [0; 3];
        for _ in 0..100_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let cpu = (random >> 33) as usize % 4;
            let vm = 1 + (random >> 40) % 3;
            if on[cpu].take().is_some() {
                cores.leave(cpu);
            } else if cores.enter(cpu, vm) {
                on[cpu] = Some(vm);
                turns[vm as usize - 1] += 1;
            }
            for (a, b) in [(0, 2), (1, 3)] {
                assert!(on[a].zip(on[b]).is_none_or(|(a, b)| a == b), "{on:?}");
            }
        }
        assert!(turns.iter().all(|&turns| turns > 5_000), "{turns:?}");
    }
}
