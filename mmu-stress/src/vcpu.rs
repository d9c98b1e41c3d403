//! A vCPU: executes steps as hardware and a guest would.

use crate::{
    api::{Gpa, NoTables, Scope, ShadowMmu, Tracking, Translations},
    cpu::Cpu,
    guest::{Addresses, ROOTS},
    history::{Change, Time},
    program::Program,
    stats::Counts,
    step::Step,
    violation::{Rule, Violation},
    vm::Vm,
    window::Windows,
    world::Waiting,
};
use std::sync::{Arc, RwLockWriteGuard, atomic::Ordering::Relaxed};

/// Times an access may fault before it is said to fault for ever. Other vCPUs can take away what
/// a fault has built, but not so often.
pub(crate) const FAULTS: u32 = 20_000;
/// Milliseconds that tables may be short after so many tries.
const PATIENCE_MS: u32 = 5_000;
/// Notes that the ring holds.
const RING: usize = 256;

/// Steps that are remembered, to be told with a violation.
const RECENT: usize = 8;

/// A note that was pushed and not drained: the entry, and the version that its store ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note {
    pub(crate) at: Gpa,
    pub(crate) serial: u64,
}

/// A vCPU of a VM under stress.
pub struct Vcpu<M: ShadowMmu> {
    pub(crate) vm: Arc<Vm<M>>,
    index: usize,
    pub(crate) mmu: M::Vcpu,
    pub(crate) cpu: Cpu,
    pub(crate) windows: Windows,
    pub(crate) addresses: Addresses,
    pub(crate) root: usize,
    pub(crate) ring: Vec<Note>,
    in_guest: bool,
    /// The step was given up because tables ran out, and others must run first.
    pub(crate) starved: bool,
    steps: u64,
    recent: [Option<Step>; RECENT],
    /// What happened so far.
    pub counts: Counts,
}

impl<M: ShadowMmu> Vcpu<M> {
    /// vCPU `index` of `vm`, with the first root loaded.
    ///
    /// # Errors
    /// [`Violation`] if there are no tables for that.
    pub fn new(vm: Arc<Vm<M>>, index: usize) -> Result<Self, Box<Violation>> {
        let addresses = Addresses::new();
        let mut vcpu = Self {
            mmu: vm.mmu.vcpu(index),
            vm,
            index,
            cpu: Cpu::new(addresses.clone()),
            windows: Windows::new(addresses.clone()),
            addresses,
            root: index % ROOTS.len(),
            ring: Vec::new(),
            in_guest: false,
            starved: false,
            steps: 0,
            recent: [None; RECENT],
            counts: Counts::default(),
        };
        vcpu.enter();
        // A vCPU without a root cannot run: other than a step, this is not given up for others.
        for _ in 0..FAULTS {
            vcpu.load(vcpu.root, Translations::Flush)?;
            if !std::mem::take(&mut vcpu.starved) {
                return Ok(vcpu);
            }
        }
        Err(vcpu.violation(Rule::S3, "no tables for the first root".into()))
    }

    /// A violation of `rule` seen by this vCPU.
    #[cold]
    pub(crate) fn violation(&self, rule: Rule, what: String) -> Box<Violation> {
        let detail = Vec::new();
        let (vm, vcpu, step) = (self.vm.plan.vm, self.index, self.steps);
        Box::new(Violation { rule, vm, vcpu, step, what, detail })
    }

    /// Executes one step.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn execute(&mut self, step: &Step) -> Result<(), Box<Violation>> {
        self.recent[self.steps as usize % RECENT] = Some(*step);
        self.steps += 1;
        self.take(step).map_err(|mut violation| {
            violation.detail.push("the last steps of this vCPU:".into());
            let oldest = self.steps as usize % RECENT;
            let steps = self.recent[oldest..].iter().chain(&self.recent[..oldest]).flatten();
            violation.detail.extend(steps.map(|step| step.describe(&self.addresses)));
            violation
        })
    }

    fn take(&mut self, step: &Step) -> Result<(), Box<Violation>> {
        self.starved = false;
        self.counts.steps[step.kind()] += 1;
        match *step {
            Step::Access { address, access, slot, change } => {
                self.access(address, access, slot, change)?;
            }
            Step::Store { at, change, by } => self.store(at, change, by)?,
            Step::Swap { a, b, by } => {
                let (old_a, old_b) = (self.entry(a), self.entry(b));
                self.store(a, Change::Set(old_b), by)?;
                self.store(b, Change::Set(old_a), by)?;
            }
            Step::Load { root, translations } => self.load(root, translations)?,
            Step::Flush(scope) => self.flush(scope)?,
            Step::FlushAddress(address) => self.flush_address(address)?,
            _ => self.execute_rare(step)?,
        }
        Ok(())
    }

    fn execute_rare(&mut self, step: &Step) -> Result<(), Box<Violation>> {
        let vm = self.vm.clone();
        if *step == Step::LoseNotes {
            // Before they are drained.
            self.leave();
            self.lose_notes();
            return Ok(());
        }
        self.exit();
        match *step {
            Step::Zap(gfn) if vm.features.zap => {
                let _ = vm.mmu.zap_frame(gfn);
            }
            Step::MakeRoom => vm.mmu.make_room(&mut self.mmu),
            Step::Pin(root) if vm.features.pins == Some(true) => {
                let mut pinned = self.pinned_mut(&vm, root);
                let _ = vm.mmu.pin_root(ROOTS[root]);
                let loaded = self.load(root, Translations::Flush);
                self.exit();
                *pinned = true;
                loaded?;
            }
            Step::Unpin(root) if vm.features.pins == Some(true) => {
                let mut pinned = self.pinned_mut(&vm, root);
                let _ = vm.mmu.unpin_root(ROOTS[root]);
                *pinned = false;
            }
            Step::Forget(gfn) if vm.features.forget => {
                let _ = vm.mmu.forget_table(gfn);
            }
            Step::Move(gfn) if vm.features.moves => vm.move_frame(gfn),
            Step::ReadLog if vm.features.log.load(Relaxed) => self.read_log()?,
            Step::Idle => {
                vm.mmu.idle(&mut self.mmu);
                std::thread::yield_now();
                self.enter();
            }
            _ => {}
        }
        Ok(())
    }

    /// Waits until nobody else changes whether `root` is pinned.
    fn pinned_mut<'vm>(&mut self, vm: &'vm Vm<M>, root: usize) -> RwLockWriteGuard<'vm, bool> {
        loop {
            if let Some(pinned) = vm.pinned_mut(root) {
                return pinned;
            }
            // Who does so may need tables, which are free once this vCPU has passed by.
            self.pass_through();
            self.exit();
            std::thread::yield_now();
        }
    }

    fn read_log(&mut self) -> Result<(), Box<Violation>> {
        let vm = self.vm.clone();
        let read = || vm.mmu.dirty_log(&mut self.mmu);
        match vm.writes.check(&vm.oracle.clock, read) {
            None => vm.features.log.store(false, Relaxed),
            Some(Err(gfn)) => {
                return Err(self.violation(Rule::D1, format!("frame {:#x} is missing", gfn.0)));
            }
            Some(Ok(())) => {}
        }
        Ok(())
    }

    /// Runs the guest from here on.
    #[inline]
    pub(crate) fn enter(&mut self) {
        if self.in_guest && !self.vm.world.is_interrupted(self.index) {
            return;
        }
        if self.in_guest {
            // A shootdown is an exit like any other.
            self.exit();
        }
        self.in_guest = true;
        let cpu = &mut self.cpu;
        self.vm.world.enter(self.index, |lose| cpu.lose(lose));
        self.vm.mmu.entering(&mut self.mmu);
    }

    /// Leaves the guest: notes are drained before anything else happens (N1).
    pub fn exit(&mut self) {
        if !self.in_guest {
            return;
        }
        self.leave();
        if self.ring.len() > RING {
            self.lose_notes();
            return;
        }
        for number in 0..self.ring.len() {
            self.vm.mmu.note(&mut self.mmu, self.ring[number].at);
        }
        self.notes_are_done();
    }

    fn leave(&mut self) {
        self.in_guest = false;
        self.vm.world.exit(self.index);
    }

    fn lose_notes(&mut self) {
        if self.vm.plan.setup.tracking == Tracking::Notes {
            self.counts.lost += self.ring.len() as u64;
            self.vm.mmu.notes_lost(&mut self.mmu);
            self.notes_are_done();
        }
    }

    fn notes_are_done(&mut self) {
        if self.ring.is_empty() {
            return;
        }
        let time = self.vm.oracle.clock.tick();
        self.counts.notes += self.ring.len() as u64;
        for Note { at, serial } in self.ring.drain(..) {
            self.vm.oracle.close(at, serial, time);
        }
    }

    pub(crate) fn now_outside(&mut self) -> Time {
        self.exit();
        self.vm.oracle.clock.after_now()
    }

    fn load(&mut self, root: usize, translations: Translations) -> Result<(), Box<Violation>> {
        let start = self.now_outside();
        let mut tries = 0;
        while self.vm.mmu.load_root(&mut self.mmu, ROOTS[root], translations) == Err(NoTables) {
            self.make_room(&mut tries, || format!("loading root {:#x}", ROOTS[root].0))?;
            if self.starved {
                return Ok(());
            }
        }
        self.root = root;
        self.windows.loaded(root, translations, start);
        if translations == Translations::Flush {
            self.sweep(Addresses::is_lower)?;
        }
        Ok(())
    }

    fn flush(&mut self, scope: Scope) -> Result<(), Box<Violation>> {
        let start = self.now_outside();
        self.vm.mmu.flush(&mut self.mmu, scope);
        self.windows.flushed(self.root, scope, start);
        self.sweep(|_, _| true)
    }

    fn flush_address(&mut self, address: usize) -> Result<(), Box<Violation>> {
        let start = self.now_outside();
        self.vm.mmu.flush_address(&mut self.mmu, self.addresses.gva(address));
        self.windows.flushed_address(self.root, address, start);
        self.enter();
        self.look(address)
    }

    /// Leaves the guest for good, or until [`Self::finish`]: nobody waits for this vCPU.
    pub fn rest(&mut self) {
        self.exit();
        self.vm.mmu.idle(&mut self.mmu);
    }

    /// Flushes everything, and looks at everything.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn finish(&mut self) -> Result<(), Box<Violation>> {
        self.enter();
        self.flush(Scope::All)?;
        self.rest();
        Ok(())
    }

    pub(crate) fn make_room(
        &mut self,
        tries: &mut u32,
        what: impl FnOnce() -> String,
    ) -> Result<(), Box<Violation>> {
        *tries += 1;
        self.counts.rooms += 1;
        if *tries > FAULTS {
            // Another vCPU may be in the MMU and its thread not running: that takes time, not tries.
            if *tries > FAULTS + PATIENCE_MS && !self.vm.world.is_over() {
                return Err(self.violation(Rule::S3, format!("no tables for ever: {}", what())));
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.vm.mmu.make_room(&mut self.mmu);
        // Tables that others may still walk are free once those have entered the guest again.
        self.enter();
        self.exit();
        std::thread::yield_now();
        self.starved = *tries > 2 && self.vm.world.waiting() == Waiting::ForNobody;
        Ok(())
    }

    /// The last step was given up: others must pass through L1 before it is taken again.
    #[must_use]
    pub const fn is_starved(&self) -> bool {
        self.starved
    }

    /// Leaves the guest and enters it again.
    pub fn pass_through(&mut self) {
        self.exit();
        self.enter();
    }

    /// The program of this vCPU.
    #[must_use]
    pub fn program(&self) -> Program {
        self.vm.plan.program(self.index)
    }
}

impl<M: ShadowMmu> Drop for Vcpu<M> {
    /// Nobody waits for a vCPU that is gone.
    fn drop(&mut self) {
        self.vm.world.exit(self.index);
    }
}

impl<M: ShadowMmu> std::fmt::Debug for Vcpu<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vcpu").field("index", &self.index).finish_non_exhaustive()
    }
}
