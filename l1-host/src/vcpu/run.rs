//! The run loop: enter the guest, see why it came back, do something about it.
//! May: unsafe. Context: run-loop.
#![expect(unsafe_code, reason = "this is where guests are entered")]

use super::{
    Vcpu, observe,
    state::{Cr3State, Mode},
    stop::{Leave, Stop},
};
use crate::{
    abi_flaw::{Flaw, planted},
    dev::virtio::slots,
    guests,
    hw::{cpu, percpu::Cpu},
    interrupt, pti, sched,
    stats::Reason,
};
use core::{mem, sync::atomic::Ordering::Relaxed};
use pv_abi::event::{self, RFLAGS_ARITHMETIC, RFLAGS_FORCED, RFLAGS_NEVER};
use switcher::{Exit, block::NO_PAGE, exit, mode};

impl Vcpu {
    /// Runs on `cpu` until something else is to run there.
    pub fn run(&mut self, cpu: &Cpu) -> Leave {
        self.load(cpu);
        let loaded = self.take_first_root().map_or(Ok(()), |root| self.switch_root(root, true));
        let leave = match loaded {
            Ok(()) => self.run_loop(cpu),
            Err(stop) => stop.into(),
        };
        #[cfg(feature = "dirty-check")]
        let leave = self.end_dirty_check(leave);
        self.unload(cpu);
        leave
    }

    fn run_loop(&mut self, cpu: &Cpu) -> Leave {
        loop {
            if let Err(leave) = self.prepare(cpu) {
                return leave;
            }
            self.enter(cpu);
            let begin = self
                .stats
                .begin(|| observe::left(&mut self.trace, &self.context, self.mode, &self.remote));
            match self.handle_exit(cpu) {
                Ok(reason) => self.stats.record(reason, begin, || {
                    observe::handled(&mut self.trace, &self.remote, reason)
                }),
                Err(stop) => return stop.into(),
            }
        }
    }

    /// Everything that may have to happen before the guest goes on. If it succeeds the guest counts as
    /// running.
    #[inline]
    fn prepare(&mut self, cpu: &Cpu) -> Result<(), Leave> {
        if self.apic.needs_attention() {
            self.attend(cpu)?;
        }
        #[cfg(feature = "dirty-check")]
        self.check_dirty_log()?;
        loop {
            // What is asked for already is done before the model looks, not after.
            #[cfg(feature = "tlb-model")]
            self.take_flush_requests();
            if self.cr3_state != Cr3State::Ready {
                self.settle_cr3(cpu);
            }
            self.tlb.judge(&self.vm, &self.mmu)?;
            // Who asks for a flush from here on waits until the guest is left again.
            self.remote.enter();
            if !self.has_flush_requests() {
                return Ok(());
            }
            self.remote.leave();
            self.take_flush_requests();
        }
    }

    /// Timer, waiting, interrupts, and whether it may stay on this CPU.
    #[cold]
    fn attend(&mut self, cpu: &Cpu) -> Result<(), Leave> {
        if self.stops {
            return Err(Leave::Off);
        }
        if mem::take(&mut self.outside) {
            self.look_outside(cpu)?;
        }
        if let Some(slot) = self.resetting {
            self.wait_until_reset(cpu, slot)?;
        }
        if self.halted {
            self.wait(cpu)?;
        }
        self.inject_interrupt(cpu)?;
        // Last: what was injected may have the timer count again.
        if self.apic.take_rearm() {
            self.arm_timer(cpu);
        }
        self.apic.attended();
        Ok(())
    }

    /// Something has come from outside, or may have while it was elsewhere.
    fn look_outside(&mut self, cpu: &Cpu) -> Result<(), Leave> {
        if self.vm.is_ending() {
            return Err(Leave::Ended);
        }
        self.poll_sources(cpu);
        if !self.halted && sched::must_yield(cpu) {
            return Err(Leave::Preempted);
        }
        self.arm_timer(cpu);
        Ok(())
    }

    /// While the vCPU counts as not running: a root that is given up is flushed, and that waits for who runs.
    fn settle_cr3(&mut self, cpu: &Cpu) {
        if self.cr3_state == Cr3State::Stale {
            self.refresh_cr3(cpu);
        }
        self.cr3_state = if pti::is_off() {
            self.go_to_root();
            Cr3State::Unsure
        } else {
            Cr3State::Ready
        };
    }

    fn refresh_cr3(&mut self, cpu: &Cpu) {
        let roots = self.mmu.roots().expect("a running vCPU has a root");
        let (smod, umod) = self.vm.mmu.root_addresses(roots);
        self.cr3 = self.tlb.prepare(smod, umod);
        cpu.block.smod_cr3.store(self.cr3.smod, Relaxed);
        cpu.block.umod_cr3.store(self.cr3.umod, Relaxed);
    }

    /// Waits until the device in `slot` has been reset, and leaves the CPU to others meanwhile.
    fn wait_until_reset(&mut self, cpu: &Cpu, slot: u64) -> Result<(), Leave> {
        if self.vm.is_ending() {
            return Err(Leave::Ended);
        }
        // What is requested would have it go on at once, again and again.
        self.poll_sources(cpu);
        if !self.vm.devices.is_reset(slot, self.index) {
            return Err(Leave::Waits);
        }
        self.resetting = None;
        Ok(())
    }

    /// Waits until an interrupt can be delivered.
    ///
    /// # Errors
    /// It is to leave the CPU: another is ready, or the VM ends.
    fn wait(&mut self, cpu: &Cpu) -> Result<(), Leave> {
        self.vm.mmu.idle(self.index);
        while self.apic.deliverable().is_none() {
            if self.vm.is_ending() {
                return Err(Leave::Ended);
            }
            self.poll_sources(cpu);
            if self.apic.deliverable().is_some() {
                break;
            }
            self.arm_timer(cpu);
            if !sched::halt(cpu) || guests::any_to_bury() {
                return Err(Leave::Waits);
            }
            sched::tick(cpu);
            self.poll_sources(cpu);
        }
        // It may have fired early, or for another, and something else ended the wait.
        self.apic.timer_to_be_armed();
        self.vm.mmu.entering(self.index);
        self.halted = false;
        Ok(())
    }

    /// Turns what has happened outside into interrupt requests.
    fn poll_sources(&mut self, cpu: &Cpu) {
        self.poll_timer(cpu);
        self.remote.take_requests(|vector| self.apic.raise(vector));
        slots::go_on(&self.vm);
        // Devices interrupt the first vCPU.
        if self.index == 0 {
            self.poll_devices();
        }
    }

    fn poll_devices(&mut self) {
        if let Some(vector) = self.vm.console.poll() {
            self.apic.raise(vector);
        }
        let vm = &self.vm;
        if slots::give_input(vm) {
            return;
        }
        let raise = vm.bus.lock().receive(|| {
            let mut byte = [0];
            (vm.console.take(&mut byte) == 1).then_some(byte[0])
        });
        for vector in raise {
            self.apic.raise(vector);
        }
    }

    fn enter(&mut self, cpu: &Cpu) {
        self.vm.mmu.entering_again(self.index);
        cpu.block.mode.store(self.mode_word(), Relaxed);
        self.context.cr3 = self.entry_root();
        self.load_debug();
        #[cfg(feature = "switcher-traps")]
        let door = crate::traps::arm(cpu, self.debug.armed != 0, self.context.sysret != 0);
        #[cfg(not(feature = "switcher-traps"))]
        let door = self.door;
        // SAFETY: 1. `cpu` is this CPU, brought up by `hw::percpu`; interrupts are off in L1.
        // 2. The roots are the MMU's, whose fixed entries are the switcher window of this VM and
        //    the VM window; the block's copies are of the same pair.
        // 3. `sysret` is set only where RCX, R11 and RIP were checked (`hypercall`, `eretu`).
        // 4. RFLAGS and selectors were sanitized wherever they were set from guest values, and RFLAGS
        //    are looked at whenever a guest is left.
        unsafe { switcher::enter::enter(door, &mut self.context) };
        #[cfg(feature = "switcher-traps")]
        crate::traps::remains::left(cpu);
        self.remote.leave();
        self.unload_debug();
        self.context.sysret = 0;
        if self.context.rflags & RFLAGS_NEVER != 0 {
            self.disbelieve_flags();
        }
        self.mode = if cpu.block.mode.load(Relaxed) & mode::SUPERVISOR != 0 {
            Mode::Supervisor
        } else {
            Mode::User
        };
        if !planted(Flaw::EarlyOutdated) {
            cpu.block.absent_page.store(NO_PAGE, Relaxed);
        }
    }

    /// The CPU has shown flags that no CPU has. Behind CMPXCHG8B and CMPXCHG16B QEMU 7.2's emulator may show an
    /// operand of an earlier instruction among them. With that as its RFLAGS the guest would go on with any
    /// IOPL, and copy backwards. The arithmetic flags are all that can be kept.
    #[cold]
    #[inline(never)]
    fn disbelieve_flags(&mut self) {
        // Where the emulator looked after other things meanwhile, they have become L1's.
        cpu::reset_flags();
        self.context.rflags = self.context.rflags & RFLAGS_ARITHMETIC | RFLAGS_FORCED;
    }

    /// Loads CR3 if it has not the root that the guest is to be entered with, or must forget what the CPU
    /// has cached.
    #[inline]
    fn go_to_root(&mut self) {
        let root = self.entry_root();
        // Bit 63 is no part of it: with tags, what is stale is gone already.
        let stale = self.cr3.stale && !planted(Flaw::StaleKept);
        if stale || cpu::cr3() != root & !(1 << 63) {
            self.run_on(root);
            self.cr3.stale = false;
        }
    }

    /// What CR3 is to be when its guest runs in the mode that it is in.
    const fn entry_root(&self) -> u64 {
        match self.mode {
            Mode::User => self.cr3.umod,
            Mode::Supervisor => self.cr3.smod,
        }
    }

    /// The most frequent reasons first, by number; the rest by name.
    #[inline]
    fn handle_exit(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        const PAGE_FAULT: u64 = event::PF as u64;
        const GENERAL_PROTECTION: u64 = event::GP as u64;
        self.tlb.left(&self.vm, &self.mmu);
        self.drain_notes();
        match self.context.reason {
            exit::SYSCALL => self.syscall(cpu),
            PAGE_FAULT => self.page_fault(cpu, cpu::cr2(), self.context.error),
            GENERAL_PROTECTION => self.general_protection(cpu, self.context.error),
            _ => self.handle_rare_exit(cpu),
        }
    }

    #[cold]
    fn handle_rare_exit(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        match Exit::decode(self.context.reason, self.context.error) {
            Exit::Syscall => self.syscall(cpu),
            Exit::Exception(vector, error) => self.exception(cpu, vector, error),
            Exit::Interrupt(vector) => {
                let reason = interrupt::handle(cpu, vector);
                if reason == Reason::Timer {
                    sched::tick(cpu);
                }
                self.notice_outside();
                Ok(reason)
            }
            // The IRET to the guest refused what it was to load: its #GP, #NP or #SS in the context
            // it was to return to, which is what the registers hold.
            Exit::FailedEntry(vector) => {
                self.deliver(cpu, vector, self.context.error)?;
                Ok(Reason::FailedEntry)
            }
            Exit::Syscall32 => self.syscall32(cpu),
            Exit::Virtual8086(vector) => {
                if vector >= exit::FIRST_INTERRUPT && vector != event::INT80 {
                    interrupt::handle(cpu, vector);
                }
                Err(Stop::Unsupported("virtual-8086 mode"))
            }
            Exit::Lost => Err(Stop::Unsupported("a debug exception within another")),
        }
    }

    fn exception(&mut self, cpu: &Cpu, vector: u8, error: u64) -> Result<Reason, Stop> {
        match vector {
            event::DB => self.debug_exception(cpu),
            event::NMI => {
                #[cfg(feature = "switcher-traps")]
                crate::traps::left_by_nmi(cpu);
                Ok(Reason::OtherInterrupt)
            }
            event::MC => panic!("machine check while a guest ran"),
            event::DF => Err(Stop::TripleFault("a double fault at CPL3")),
            event::INT80 => {
                self.deliver(cpu, vector, 0)?;
                Ok(Reason::SoftwareInterrupt)
            }
            _ => {
                self.deliver(cpu, vector, error)?;
                Ok(Reason::OtherException)
            }
        }
    }
}
