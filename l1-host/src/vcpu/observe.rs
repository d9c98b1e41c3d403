//! Watches a vCPU for those who want to know: its last exits, its counters while it runs, its registers
//! when its guest has died.
//! May: nothing. Context: run-loop.
//!
//! What is done at every exit hides behind the one test for whether exits are timed
//! ([`crate::stats::Timing`]): it costs nothing while nobody asks.

use super::{Vcpu, remote::Remote, state::Mode};
use crate::{
    core_dump::Registers,
    hw::cpu,
    live,
    stats::Reason,
    trace::{self, Entry, Ring},
};
use switcher::Context;

/// The guest has just been left; returns when.
#[cold]
pub(super) fn left(ring: &mut Option<Ring>, context: &Context, mode: Mode, remote: &Remote) -> u64 {
    let now = cpu::tsc();
    if let Some(ring) = ring {
        let supervisor = mode == Mode::Supervisor;
        let Context { reason, error, rip, rax, .. } = *context;
        let detail = trace::detail(reason, rax, cpu::cr2);
        ring.add(Entry::new(now, remote.last_cpu(), supervisor, reason, error, rip, detail));
    }
    now
}

/// The exit was for `reason` and is seen to; returns when.
#[cold]
pub(super) fn handled(ring: &mut Option<Ring>, remote: &Remote, reason: Reason) -> u64 {
    let now = cpu::tsc();
    if let Some(ring) = ring {
        ring.handled(reason);
    }
    if live::is_on() {
        remote.counts.add(reason);
        live::tell_if_due(now);
    }
    now
}

impl Vcpu {
    /// Remembers its last exits from now on, if they are timed.
    pub fn trace(&mut self) {
        self.trace = Some(Ring::new());
    }

    /// Its last `most` exits, the oldest first; none if they are not remembered.
    pub fn last_exits(&self, most: usize) -> impl Iterator<Item = &Entry> {
        self.trace.iter().flat_map(move |ring| ring.last(most))
    }

    /// All its registers. It is on no CPU.
    pub fn registers(&self) -> Registers {
        let c = &self.context;
        let [ds, es, fs, gs] = self.saved.selectors();
        let (fs_base, gs_base) = self.saved.bases();
        let root = self.mmu.roots().map_or(0, |roots| roots.gfn.gpa().0);
        [
            ("rax", c.rax),
            ("rbx", c.rbx),
            ("rcx", c.rcx),
            ("rdx", c.rdx),
            ("rsi", c.rsi),
            ("rdi", c.rdi),
            ("rbp", c.rbp),
            ("rsp", c.rsp),
            ("r8", c.r8),
            ("r9", c.r9),
            ("r10", c.r10),
            ("r11", c.r11),
            ("r12", c.r12),
            ("r13", c.r13),
            ("r14", c.r14),
            ("r15", c.r15),
            ("rip", c.rip),
            ("rflags", c.rflags),
            ("cs", c.cs),
            ("ss", c.ss),
            ("ds", ds),
            ("es", es),
            ("fs", fs),
            ("gs", gs),
            ("fs_base", fs_base),
            ("gs_base", gs_base),
            ("kernel_gs_base", self.msrs.kernel_gs_base),
            ("cr0", self.msrs.cr0),
            ("cr2", self.pvcs.as_ref().map_or(0, |pvcs| pvcs.cr2())),
            ("cr3", root | self.msrs.cr3_low),
            ("cr4", self.msrs.cr4),
            ("supervisor", (self.mode == Mode::Supervisor).into()),
        ]
    }
}
