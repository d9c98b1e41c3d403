//! SYSCALL in either mode: system calls of user mode, ERETU, the hypercalls of generation C1.
//! May: guest-memory. Context: run-loop, irq-off. Input: guest-controlled.

use super::{
    Vcpu,
    pvcs::{EventWord, Saved},
    state::{Cr3State, Mode},
    stop::Stop,
    tlb::Request,
};
use crate::{
    abi_flaw::{Flaw, planted},
    hw::percpu::Cpu,
    pti,
    stats::Reason,
};
use pv_abi::{
    PAGE_SHIFT,
    addr::{Gfn, Gva},
    event::{self, RFLAGS_ALLOWED, RFLAGS_FORCED, RFLAGS_RF, RFLAGS_TF},
    ext, hypercall,
    pvcs::{flags, vector as guard},
    selectors::USER_CS_SS,
};
use shadow_mmu::{Next, root::RootError};
use switcher::{block::NO_PAGE, direct::SYSRET_LIMIT};

/// What kind of ERETU it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Return {
    /// The plain one, which the switcher could not do itself.
    Plain,
    /// The extension's: map the address just handled first.
    Prefault,
}

/// What became of a root that could not be loaded at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retried {
    /// It was loaded after all.
    Loaded,
    /// It is no RAM; the old one stays.
    Ignored,
}

impl Vcpu {
    /// SYSCALL from 64-bit code.
    // A function of its own: inlined, it would cost every exit of the run loop registers. What it
    // hands on to saves registers itself, so that nothing is saved for the shortest calls.
    #[inline(never)]
    pub(super) fn syscall(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        if self.mode == Mode::User {
            return self.syscall_from_user(cpu);
        }
        let rip = self.context.rip;
        if rip == self.msrs.retu_return {
            return self.eretu_plain(cpu);
        }
        if rip == self.msrs.retu_prefault_return {
            return self.eretu_prefault(cpu);
        }
        if self.vm.reflects(rip) {
            return self.reflect_syscall(cpu);
        }
        self.hypercall(cpu)
    }

    #[cold]
    fn reflect_syscall(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        self.deliver(cpu, ext::event::SYSCALL, 0)?;
        Ok(Reason::SyscallReflected)
    }

    /// What the direct switch does (`switcher::direct::to_supervisor`), when it was inhibited.
    #[cold]
    fn syscall_from_user(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        // Not `ok_or`: the error would be made, and dropped, each time.
        let Some(pvcs) = self.pvcs else {
            return Err(Stop::TripleFault("a SYSCALL, and no PVCS is registered"));
        };
        let context = &self.context;
        pvcs.save(&Saved {
            eflags: context.r11,
            rip: context.rcx,
            rcx: context.rcx,
            r11: context.r11,
        });
        // Selectors only: vector and error code stay as they are.
        pvcs.set_selectors(USER_CS_SS);
        pvcs.set_user_gsbase(cpu.bases.gs());
        cpu.bases.set_gs(self.msrs.kernel_gs_base);
        self.mode = Mode::Supervisor;
        self.go_to_kernel(self.msrs.lstar);
        Ok(Reason::SyscallUser)
    }

    #[inline(never)]
    fn eretu_plain(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        self.eretu(cpu, Return::Plain)
    }

    #[inline(never)]
    fn eretu_prefault(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        self.eretu(cpu, Return::Prefault)
    }

    /// Return to user mode from the PVCS (spec part 1.7), each field read once.
    #[inline(always)]
    fn eretu(&mut self, cpu: &Cpu, kind: Return) -> Result<Reason, Stop> {
        // Not `ok_or`: the error would be made, and dropped, each time.
        let Some(pvcs) = self.pvcs else {
            return Err(Stop::TripleFault("ERETU, and no PVCS is registered"));
        };
        let selectors = pvcs.event().selectors();
        let saved = pvcs.restore();
        let mut gsbase = Gva(pvcs.user_gsbase()).canonicalized().0;
        if planted(Flaw::GsBaseCut) {
            gsbase &= (1 << 47) - 1;
        }
        pvcs.set_event(EventWord::new(selectors, 0, guard::STANDARD));

        cpu.bases.set_gs(gsbase);
        self.mode = Mode::User;
        if self.awaits_window() {
            // What waits is delivered now.
            pvcs.update_flags(0, flags::IP);
            self.set_awaits_window(false);
        }
        let mut rflags = saved.eflags & RFLAGS_ALLOWED | RFLAGS_FORCED;
        if planted(Flaw::ReturnDropsDf) {
            rflags &= !(1 << 10);
        }
        let context = &mut self.context;
        (context.rip, context.rcx, context.r11) = (saved.rip, saved.rcx, saved.r11);
        context.rflags = rflags;
        context.cs = u64::from(selectors & 0xffff | 3);
        context.ss = u64::from(selectors >> 16 | 3);
        let sysret = selectors == USER_CS_SS
            && saved.rip == saved.rcx
            && rflags == saved.r11
            && rflags & (RFLAGS_TF | RFLAGS_RF) == 0
            && saved.rip < SYSRET_LIMIT;
        context.sysret = sysret.into();
        let fault = Gva(pvcs.cr2());
        if kind == Return::Prefault
            && let Some(access) = self.take_fault(cpu, fault)
        {
            let (_, next) = self.vm.mmu.prefault(&mut self.mmu, fault, access);
            self.tlb.mapped(fault);
            self.faulted_page = fault.0 >> PAGE_SHIFT;
            if next == Next::Absent {
                self.expect_fault(cpu, (fault.0 >> PAGE_SHIFT) + 1);
            }
        }
        Ok(match kind {
            Return::Plain => Reason::Eretu,
            Return::Prefault => Reason::EretuPrefault,
        })
    }

    #[inline(always)]
    fn hypercall(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        let context = &self.context;
        let (number, first, second) = (context.rax, context.rbx, context.r10);
        // A return by SYSRET: RCX and R11 are destroyed by definition.
        self.context.rcx = self.context.rip;
        self.context.rflags = self.context.rflags & RFLAGS_ALLOWED | RFLAGS_FORCED;
        self.context.r11 = self.context.rflags;
        let plain = self.context.rflags & (RFLAGS_TF | RFLAGS_RF) == 0;
        self.context.sysret = (plain && Gva(self.context.rip).is_canonical()).into();
        match number {
            hypercall::LOAD_PGTBL => self.load_pgtbl(first, second),
            hypercall::TLB_INVLPG => self.flush_address(cpu, Gva(first)),
            hypercall::IRQ_WIN => {
                if let Some(pvcs) = self.pvcs.as_ref().filter(|_| !planted(Flaw::IpKept)) {
                    pvcs.update_flags(0, flags::IP);
                }
                self.set_awaits_window(false);
                self.context.rax = 0;
                Ok(Reason::Hypercall)
            }
            _ => self.rarer_hypercall(cpu, number),
        }
    }

    /// TLB_INVLPG.
    #[inline(never)]
    fn flush_address(&mut self, cpu: &Cpu, gva: Gva) -> Result<Reason, Stop> {
        self.invlpg(gva);
        if gva.0 >> PAGE_SHIFT == self.faulted_page {
            self.given_back(cpu, gva);
        }
        self.context.rax = 0;
        Ok(Reason::Invlpg)
    }

    #[inline(never)]
    fn rarer_hypercall(&mut self, cpu: &Cpu, number: u64) -> Result<Reason, Stop> {
        let (first, second) = (self.context.rbx, self.context.r10);
        let (result, reason) = match number {
            hypercall::WRMSR => {
                let done = self.write_msr(cpu, first as u32, second).is_ok();
                (if done { 0 } else { hypercall::EIO }, Reason::HypercallMsr)
            }
            hypercall::RDMSR => {
                (self.read_msr(cpu, first as u32).unwrap_or(0), Reason::HypercallMsr)
            }
            hypercall::TLB_FLUSH => {
                self.flush_everything();
                (0, Reason::Flush)
            }
            hypercall::TLB_FLUSH_CURRENT if planted(Flaw::FlushForgotten) => (0, Reason::Flush),
            hypercall::TLB_FLUSH_CURRENT => {
                self.tlb.asked(Request::Current);
                self.vm.mmu.flush(&mut self.mmu);
                self.tlb.flush_current();
                self.cr3_state = Cr3State::Stale;
                (0, Reason::Flush)
            }
            hypercall::IRQ_HALT => {
                self.irq_halt();
                (0, Reason::Halt)
            }
            hypercall::LOAD_GS => (self.load_gs(cpu, first as u16), Reason::Hypercall),
            hypercall::LOAD_TLS => {
                let third = self.context.rdx;
                self.load_tls(cpu, [first, second, third]);
                (0, Reason::Hypercall)
            }
            _ => (self.extension_call(cpu, number, first, second)?, Reason::Hypercall),
        };
        self.context.rax = result;
        if planted(Flaw::RdxDestroyed) {
            self.context.rdx = 0;
        }
        Ok(reason)
    }

    /// The page of the last user-mode fault was flushed. A program that gives a page back often wants it
    /// again.
    #[inline(never)]
    fn given_back(&mut self, cpu: &Cpu, gva: Gva) {
        if self.vm.mmu.is_absent(&self.mmu, gva) {
            self.expect_fault(cpu, gva.0 >> PAGE_SHIFT);
        } else {
            // One that only changes its permissions is not looked at each time.
            self.faulted_page = NO_PAGE;
        }
    }

    /// LOAD_PGTBL.
    #[inline(never)]
    fn load_pgtbl(&mut self, options: u64, cr3: u64) -> Result<Reason, Stop> {
        let gfn = Gfn((cr3 & 0x000f_ffff_ffff_f000) >> 12);
        let pinned = options & ext::call::LOAD_PGTBL_PINNED != 0;
        if pinned && self.vm.features().contains(ext::Features::NOTES) {
            let _ = self.vm.mmu.pin_root(gfn);
        }
        self.load_cr3(cr3, options & hypercall::LOAD_PGTBL_FLUSH != 0)?;
        self.context.rax = 0;
        Ok(Reason::LoadPgtbl)
    }

    /// Loads the address space that `cr3` names. A root that is no RAM is ignored, as in
    /// generation C.
    #[inline(always)]
    pub(super) fn load_cr3(&mut self, cr3: u64, flush: bool) -> Result<(), Stop> {
        let gfn = Gfn((cr3 & 0x000f_ffff_ffff_f000) >> 12);
        self.switch_root(gfn, flush)?;
        if self.mmu.roots().is_some_and(|roots| roots.gfn == gfn) {
            self.msrs.cr3_low = cr3 & 0xfff;
        }
        Ok(())
    }

    /// Loads the address space in `gfn`, with or without a flush of its translations.
    #[inline(always)]
    pub(super) fn switch_root(&mut self, gfn: Gfn, flush: bool) -> Result<(), Stop> {
        if self.others_stale && !flush {
            self.flush_all();
        }
        let result = self.load_root(gfn, flush);
        if let Err(error) = result {
            match self.retry_root(gfn, flush, error)? {
                Retried::Loaded => {}
                Retried::Ignored => return Ok(()),
            }
        }
        self.tlb.select(gfn);
        if flush {
            self.tlb.asked(Request::Load);
            self.tlb.flush_current();
        }
        self.cr3_state = Cr3State::Stale;
        Ok(())
    }

    /// Loads the roots of `gfn`; the CPU may stay on those that were loaded until it enters the guest.
    #[inline(always)]
    fn load_root(&mut self, gfn: Gfn, flush: bool) -> Result<(), RootError> {
        if !pti::is_off() {
            return self.vm.mmu.load_root(&mut self.mmu, gfn, flush).map(drop);
        }
        let (_, left) = self.vm.mmu.exchange_root(&mut self.mmu, gfn, flush)?;
        // Of several that were loaded since the guest was left, the CPU is on the first.
        match (self.previous, left) {
            (Some(_), Some(left)) => self.vm.mmu.give_up(left),
            (None, left) => self.previous = left,
            (Some(_), None) => {}
        }
        Ok(())
    }

    #[cold]
    fn retry_root(&mut self, gfn: Gfn, flush: bool, error: RootError) -> Result<Retried, Stop> {
        let mut result = Err(error);
        if error == RootError::NoMemory {
            self.make_room();
            result = self.load_root(gfn, flush);
        }
        match result {
            Ok(_) => Ok(Retried::Loaded),
            Err(RootError::NotRam) if self.mmu.roots().is_some() => Ok(Retried::Ignored),
            Err(_) => Err(Stop::TripleFault("no page table could be loaded")),
        }
    }

    /// The guest asked for a flush of everything.
    pub(super) fn flush_everything(&mut self) {
        self.tlb.asked(Request::All);
        self.flush_all();
    }

    /// Flushes every translation of this vCPU.
    pub(super) fn flush_all(&mut self) {
        self.vm.mmu.flush(&mut self.mmu);
        self.tlb.flush_all();
        self.cr3_state = Cr3State::Stale;
        self.others_stale = false;
    }

    /// Flushes one address everywhere it may be cached: at once in the current address space, and
    /// for an address of the lower half before the next one is used that was not flushed itself.
    #[inline(always)]
    pub(super) fn invlpg(&mut self, gva: Gva) {
        self.tlb.asked(Request::Address(gva));
        self.others_stale |= gva.index(4) < 256;
        self.vm.mmu.flush_noted_address(&self.mmu, gva, self.noted);
        if gva.is_canonical() {
            self.tlb.flush_address(gva);
        }
    }

    /// IRQ_HALT: IF := 1 and wait, as one step.
    fn irq_halt(&mut self) {
        if let Some(pvcs) = &self.pvcs {
            pvcs.update_flags(flags::IF, flags::IP);
        }
        self.set_awaits_window(false);
        self.halt();
    }

    /// SYSCALL from 32-bit code: not delivered to guests, but a #UD like on CPUs without it.
    pub(super) fn syscall32(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        self.context.rip = self.context.rip.wrapping_sub(2);
        self.deliver(cpu, event::UD, 0)?;
        Ok(Reason::OtherException)
    }
}
