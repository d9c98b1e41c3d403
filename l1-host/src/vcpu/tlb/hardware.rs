//! The CPU's own TLB.
//! May: unsafe behind [`Invpcid`]. Context: irq-off.

use super::Request;
use crate::{
    hw::{cpu::Invpcid, percpu::Cpu},
    pti,
    vcpu::{state::Mode, stop::Stop},
    vm::Vm,
};
use pv_abi::addr::{Gfn, Gva, Hpa};
use shadow_mmu::{
    VcpuMmu,
    tlb::{Cr3Pair, Kept, Tags},
};

/// What the CPU keeps, and INVPCID or INVLPG.
#[derive(Debug)]
pub struct Tlb(Tags);

impl Tlb {
    pub fn new(cpu: &Cpu) -> Self {
        Self(Tags::new(match () {
            () if cpu.features.pcid && cpu.features.invpcid => Kept::ByTag,
            () if pti::is_off() => Kept::UntilLoad,
            () => Kept::UntilExit,
        }))
    }

    /// See [`Tags::select`].
    #[inline]
    pub fn select(&mut self, root: Gfn) {
        self.0.select(root);
    }

    /// See [`Tags::flush_all`].
    #[inline]
    pub fn flush_all(&mut self) {
        self.0.flush_all();
    }

    /// The same, asked for by the shadow MMU.
    #[inline]
    pub fn flush_requested(&mut self) {
        self.0.flush_all();
    }

    /// See [`Tags::flush_current`].
    #[inline]
    pub fn flush_current(&mut self) {
        self.0.flush_current();
    }

    /// See [`Tags::flush_address`].
    #[inline]
    pub fn flush_address(&mut self, gva: Gva) {
        self.0.flush_address(&Invpcid, gva);
    }

    /// See [`Tags::prepare`].
    #[inline]
    pub fn prepare(&mut self, smod: Hpa, umod: Hpa) -> Cr3Pair {
        self.0.prepare(&Invpcid, smod, umod)
    }

    /// The guest asked for a flush, which is being served.
    #[inline(always)]
    pub fn asked(&mut self, _: Request) {}

    /// The guest was left.
    #[inline(always)]
    pub fn left(&mut self, _: &Vm, _: &VcpuMmu) {}

    /// The guest faulted at `gva`.
    #[inline(always)]
    pub fn faulted(&mut self, _: Gva, _: Mode) {}

    /// `gva` was mapped though the guest has not faulted there just now.
    #[inline(always)]
    pub fn mapped(&mut self, _: Gva) {}

    /// The guest is about to be entered.
    #[inline(always)]
    pub fn judge(&mut self, _: &Vm, _: &VcpuMmu) -> Result<(), Stop> {
        Ok(())
    }

    /// What was counted.
    pub fn counters(&self) -> [(&'static str, u64); 0] {
        []
    }
}
