//! Handles page faults of the guest.
//! May: guest-memory, take-frame. Context: run-loop, irq-off. Input: guest-controlled.

use super::{Vcpu, access::GuestFault, stop::Stop};
use crate::{
    abi_flaw::{Flaw, planted},
    hw::{cpu::BaseAccess, percpu::Cpu},
    stats::Reason,
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{addr::Gva, event, ext::Features};
use shadow_mmu::{Access, Outcome};

/// How often other vCPUs are asked to come out before a fault finds no memory.
const PATIENCE: u32 = 10_000;

impl Vcpu {
    /// A page fault at `gva` with the hardware's error code.
    #[inline]
    pub(super) fn page_fault(&mut self, cpu: &Cpu, gva: u64, error: u64) -> Result<Reason, Stop> {
        let gva = Gva(gva);
        self.tlb.faulted(gva, self.mode);
        let access = self.as_guest(Access::from_error(error));
        match self.resolve(gva, access) {
            Outcome::Mapped => Ok(Reason::PageFaultFilled),
            Outcome::Mmio(gpa) => {
                self.emulate_mmio(cpu, gva, gpa, access)?;
                Ok(Reason::Mmio)
            }
            Outcome::Reflect(error) => {
                if access.contains(Access::USER) {
                    self.last_fault = Some((gva, access));
                }
                self.reflect_fault(cpu, GuestFault { gva, error })?;
                Ok(Reason::PageFaultReflected)
            }
            Outcome::NoMemory => Err(Stop::Unsupported("an address space of this size")),
        }
    }

    /// The fault of user mode at `gva` that the guest was told last, by L1 or without it; it is forgotten.
    #[inline]
    pub(super) fn take_fault(&mut self, cpu: &Cpu, gva: Gva) -> Option<Access> {
        let last = self.last_fault.take();
        let [early, error] = &cpu.block.early_fault;
        let error = error.swap(0, Relaxed);
        if error != 0 && early.load(Relaxed) == gva.0 {
            return Some(Access::from_error(error) | Access::USER);
        }
        last.and_then(|(at, access)| (at == gva).then_some(access))
    }

    /// From now to the next exit, a fault of user mode in the page with number `page` is the guest's: its
    /// tables map nothing there.
    #[inline]
    pub(super) fn expect_fault(&mut self, cpu: &Cpu, page: u64) {
        let wanted =
            self.vm.features().contains(Features::EARLY_FAULTS) || planted(Flaw::EarlyUnasked);
        if wanted && cpu.bases == BaseAccess::Instructions && !cfg!(feature = "tlb-model") {
            cpu.block.absent_page.store(page, Relaxed);
        }
    }

    /// Resolves a fault, making room for tables if need be.
    pub(super) fn resolve(&mut self, gva: Gva, access: Access) -> Outcome {
        let outcome = self.vm.mmu.fault(&mut self.mmu, gva, access);
        if outcome != Outcome::NoMemory {
            return outcome;
        }
        // Everything goes and is built again by faults. The frames are free once this vCPU has
        // passed a quiescent point; it is in L1, flushed on entry, so it may pass one right here.
        self.make_room();
        self.vm.mmu.fault(&mut self.mmu, gva, access)
    }

    /// Drops shadow pages until some are free.
    pub(super) fn make_room(&mut self) {
        let mmu = &self.vm.mmu;
        mmu.shrink();
        // It holds no table now, and others that make room as well do not wait for it.
        mmu.idle(self.index);
        for _ in 0..PATIENCE {
            mmu.reclaim();
            if mmu.free_pages() != 0 {
                break;
            }
            // Whoever runs its guest comes out, flushed, and passes a quiescent point.
            shadow_mmu::TlbOps::flush_all(self.vm.env());
        }
        mmu.entering(self.index);
    }

    /// Gives a #PF to the guest.
    pub(super) fn reflect_fault(&mut self, cpu: &Cpu, fault: GuestFault) -> Result<(), Stop> {
        if let Some(pvcs) = self.pvcs.as_ref().filter(|_| !planted(Flaw::Cr2Lost)) {
            pvcs.set_cr2(fault.gva.0);
        }
        self.deliver(cpu, event::PF, fault.error)
    }
}
