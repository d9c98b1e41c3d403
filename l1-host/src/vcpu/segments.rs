//! Descriptors that a guest brings: thread-local storage, the local descriptor table, GS.
//! May: msr. Context: run-loop. Input: guest-controlled descriptors.
//!
//! They are copied, checked and forced to DPL 3 data or code; a guest never writes a table that
//! the CPU reads.

use super::{Vcpu, access::GuestFault};
use crate::{
    abi_flaw::{Flaw, planted},
    hw::{cpu, percpu::Cpu, physmap},
    memory,
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    addr::Gva,
    hypercall::{EFAULT, EINVAL},
};
use switcher::{layout::LDT_PAGES, tables};

/// Descriptors of a local table that are read at a time; divides a page of them.
const LDT_PIECE: u64 = 64;

impl Vcpu {
    /// LOAD_TLS.
    pub(super) fn load_tls(&mut self, cpu: &Cpu, descriptors: [u64; 3]) {
        for (slot, descriptor) in descriptors.into_iter().enumerate() {
            let mut tame = tables::sanitize_tls(descriptor);
            if tame & 1 << 41 == 0 && planted(Flaw::TlsDropped) {
                tame = 0;
            }
            self.tls[slot] = tame;
            cpu.gdt.set_tls(slot, tame);
        }
    }

    /// LOAD_GS: loads the user GS selector and returns the base it brought. The supervisor's base
    /// stays in the CPU.
    pub(super) fn load_gs(&mut self, cpu: &Cpu, selector: u16) -> u64 {
        let kernel = cpu.bases.gs();
        let user_rpl = selector & 3 == 3 || selector & !3 == 0;
        if !user_rpl || cpu::load_gs_selector(selector).is_none() {
            let _ = cpu::load_gs_selector(0);
            cpu.bases.set_gs(0);
        }
        if selector & !3 == 0 {
            // Some CPUs keep the base when a null selector is loaded.
            cpu.bases.set_gs(0);
        }
        let base = cpu.bases.gs();
        if !planted(Flaw::LoadGsMovesBase) {
            cpu.bases.set_gs(kernel);
        }
        base
    }

    /// LOAD_LDT: copies `entries` descriptors at `gva` into this vCPU's table.
    pub(super) fn load_ldt(&mut self, cpu: &Cpu, gva: Gva, entries: u64) -> u64 {
        if entries == 0 {
            self.ldt_entries = 0;
            cpu::load_ldt(0);
            return 0;
        }
        if entries > LDT_PAGES * 512 {
            return EINVAL;
        }
        while (self.ldt.len() as u64) < entries.div_ceil(512) {
            let Some(page) = memory::take_zeroed() else { return EINVAL };
            self.vm.window.set_ldt(self.index, self.ldt.len() as u64, Some(page));
            self.ldt.push(page);
            shadow_mmu::TlbOps::flush_all(self.vm.env());
        }
        let mut buffer = [0; 8 * LDT_PIECE as usize];
        for first in (0..entries).step_by(LDT_PIECE as usize) {
            let count = LDT_PIECE.min(entries - first) as usize;
            let bytes = &mut buffer[..8 * count];
            if let Err(GuestFault { .. }) = self.read(gva.offset(8 * first), bytes) {
                return EFAULT;
            }
            let page = physmap::frame(self.ldt[(first / 512) as usize]);
            let slots = &page[(first % 512) as usize..][..count];
            for (slot, descriptor) in slots.iter().zip(bytes.as_chunks().0) {
                slot.store(sanitize_ldt(u64::from_le_bytes(*descriptor)), Relaxed);
            }
        }
        self.ldt_entries = entries;
        cpu.gdt.set_ldt(self.index, entries);
        cpu::load_ldt(tables::LDT_SELECTOR);
        0
    }
}

/// What becomes of a descriptor in the local table: code or data, DPL 3, accessed, never a gate
/// and never 64-bit code. A writable 16-bit data segment is dropped: as a stack it would make
/// IRET leak the upper half of L1's stack pointer.
const fn sanitize_ldt(descriptor: u64) -> u64 {
    const ACCESSED: u64 = 1 << 40;
    const WRITABLE: u64 = 1 << 41;
    const CODE: u64 = 1 << 43;
    const NOT_SYSTEM: u64 = 1 << 44;
    const DPL3: u64 = 3 << 45;
    const PRESENT: u64 = 1 << 47;
    const LONG: u64 = 1 << 53;
    const SIZE32: u64 = 1 << 54;
    if descriptor & NOT_SYSTEM == 0 {
        return 0;
    }
    let small_stack = CODE | WRITABLE | SIZE32;
    if descriptor & PRESENT != 0 && descriptor & small_stack == WRITABLE {
        return 0;
    }
    let long = if descriptor & CODE != 0 { LONG } else { 0 };
    (descriptor | DPL3 | ACCESSED) & !long
}
