//! The timer's deadline as a word that the guest shares with L1 (spec part 2).
//! May: guest-memory. Context: irq-off. Input: guest-controlled word.
//!
//! A kernel sets its timer more often than the timer fires: at a wake-up, and again before it waits.
//! None of that needs L1 while the word says it all when L1 looks (`look`).

use super::{Vcpu, look::Look};
use crate::{
    hw::{cpu, percpu::Cpu, physmap::Frame},
    sched,
};
use core::{
    mem,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, SeqCst},
    },
};
use pv_abi::ext::{Features, timer};

impl Vcpu {
    /// The page with the word, if the guest uses it.
    fn timer_page(&self) -> Option<&'static Frame> {
        self.ring().filter(|_| self.vm.features().contains(Features::TIMER_WORD))
    }

    /// Takes the deadline from the word, and fires the timer if its time has come.
    pub(super) fn poll_timer(&mut self, cpu: &Cpu) {
        let Some(page) = self.timer_page() else {
            self.apic.poll_timer(cpu::tsc());
            return;
        };
        let now = cpu::tsc();
        let word: &AtomicU64 = &page[timer::DEADLINE / 8];
        let deadline = word.load(Acquire);
        self.apic.set_deadline((deadline != 0).then_some(deadline));
        self.look = None;
        if deadline != 0 && deadline <= now {
            // Unless the guest sets it to something else right now.
            let _ = word.compare_exchange(deadline, 0, SeqCst, Relaxed);
            self.apic.poll_timer(now);
            let before = mem::replace(&mut self.fired, deadline);
            self.look = Some(Look::after(deadline, before, now, cpu.clock.tsc_hz));
        }
    }

    /// Arms the CPU's timer for this vCPU, and says for when.
    pub(super) fn arm_timer(&self, cpu: &Cpu) {
        let look = self.look.map(|look| look.at).into_iter();
        let first = sched::arm(cpu, self.apic.deadline().into_iter().chain(look).min());
        if let Some(page) = self.timer_page() {
            let told = self.look.map_or(first, |look| look.told.min(first));
            page[timer::ARMED / 8].store(told, SeqCst);
            // A deadline that is sooner, and was stored before this, was not told.
            let deadline = page[timer::DEADLINE / 8].load(SeqCst);
            if deadline != 0 && deadline < told {
                sched::arm(cpu, Some(deadline));
            }
        }
    }
}
