//! Brings up a CPU for running guests: its area of the switcher window, its tables and registers.
//! May: unsafe, msr, cr3. Context: boot.
#![expect(unsafe_code, reason = "descriptor tables and control registers")]

use super::{
    apic::LocalApic,
    clock::Clock,
    cpu::{self, BaseAccess},
    features::Features,
    physmap,
};
use crate::memory::paging::Tree;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use pv_abi::{addr::Hpa, msr::arch};
use switcher::{
    CpuBlock, L1TrapFn,
    enter::{Enter, Text},
    layout::{self, area},
    tables::{self, GdtPage, IdtPage},
};
use x86_64::{
    PrivilegeLevel, VirtAddr,
    instructions::{smap::Smap, tables as load},
    registers::{
        control::{Cr0, Cr0Flags, Cr4, Cr4Flags},
        segmentation::{CS, SS, Segment, SegmentSelector},
    },
    structures::DescriptorTablePointer,
};

/// One CPU as L1 sees it. L1-private; passed by reference to whatever runs on that CPU.
#[derive(Debug)]
pub struct Cpu {
    /// Number, from 0 in the order of start.
    pub index: usize,
    /// What it offers.
    pub features: Features,
    /// How FS and GS bases are reached.
    pub bases: BaseAccess,
    /// The block in its area.
    pub block: &'static CpuBlock,
    /// GDT and TSS in its area.
    pub gdt: &'static GdtPage,
    /// The way into a guest.
    pub enter: Enter,
    /// Its local APIC.
    pub apic: LocalApic,
    /// The id of that.
    pub apic_id: u32,
    /// The core that it is a thread of, by a number of the CPU's.
    pub core: u32,
    /// The rates of its clocks.
    pub clock: Clock,
    /// The switcher window of its root: the half that is a VM's is that of the VM it runs.
    pub window: Tree,
    /// The VM whose vCPU ran here last, by its number; 0 for none.
    pub last_vm: AtomicU64,
    /// That vCPU, by its own.
    pub last_vcpu: AtomicU64,
}

/// Frames of an area, in the order of [`area::OWN_PAGES`], for mapping.
pub type AreaFrames = [Hpa; area::OWN_PAGES.len()];

/// Fills the area of CPU `index` whose pages are `frames`. `stacks` are the tops of the four
/// L1-private stacks that the IST vectors continue on.
#[must_use]
pub fn prepare(
    index: usize,
    frames: &AreaFrames,
    l1_cr3: Hpa,
    trap: L1TrapFn,
    stacks: [u64; 4],
) -> (&'static CpuBlock, &'static GdtPage) {
    let frame_of = |page: u64| {
        let slot = area::OWN_PAGES.iter().position(|&(own, _)| own == page);
        frames[slot.expect("the page is one of the area's own")]
    };
    let block = physmap::table::<CpuBlock>(frame_of(area::BLOCK));
    let gdt = physmap::table::<GdtPage>(frame_of(area::GDT));
    let idt = physmap::table::<IdtPage>(frame_of(area::IDT));
    gdt.init(index);
    idt.init(index, Text::linked().stubs);
    block.l1_cr3.store(l1_cr3.0, Relaxed);
    block.l1_trap.store(trap as usize as u64, Relaxed);
    block.scrub();
    for (slot, stack) in block.ist_private.iter().zip(stacks) {
        slot.store(stack, Relaxed);
    }
    (block, gdt)
}

/// Loads this CPU's tables and control registers. From here on interrupts and exceptions arrive.
///
/// # Safety
/// This is CPU `index`, on a CR3 that maps its area, prepared by [`prepare`].
pub unsafe fn load(index: usize, features: &Features) -> BaseAccess {
    let base = layout::area_base(index);
    let pointer = |offset: u64, limit: u16| DescriptorTablePointer {
        limit,
        base: VirtAddr::new(base + offset),
    };
    let ring0 = |selector: u16| SegmentSelector::new(selector >> 3, PrivilegeLevel::Ring0);
    // SAFETY: the caller's promise; GDT and IDT are valid and stay where they are, and the
    // selectors name their entries.
    unsafe {
        load::lgdt(&pointer(area::GDT, tables::GDT_LIMIT));
        CS::set_reg(ring0(tables::L1_CS));
        SS::set_reg(ring0(tables::L1_DS));
        load::load_tss(ring0(tables::TSS_SELECTOR));
        load::lidt(&pointer(area::IDT, tables::IDT_LIMIT));
    }
    cpu::clear_data_selectors();
    cpu::load_ldt(0);

    let text = Text::linked();
    let bases = BaseAccess::choose(features.fsgsbase);
    let syscall = match bases {
        BaseAccess::Instructions => text.syscall,
        BaseAccess::Msrs => text.syscall_msr,
    };
    cpu::wrmsr(arch::STAR, tables::STAR);
    cpu::wrmsr(arch::LSTAR, base + syscall);
    cpu::wrmsr(arch::CSTAR, base + text.syscall32);
    cpu::wrmsr(arch::SFMASK, tables::SFMASK);
    // SYSENTER at CPL3 is #GP with a null selector.
    cpu::wrmsr(arch::SYSENTER_CS, 0);
    if features.cpuid_faulting {
        cpu::wrmsr(arch::MISC_FEATURES_ENABLES, 1);
    }

    control_registers(features);
    bases
}

/// Turns SMAP on or off, on a CPU that has it.
pub fn set_smap(on: bool) {
    // SAFETY: L1 uses no user mappings. Where SMAP stays on, the switcher clears AC on the way out of guests.
    unsafe {
        Smap::new_unchecked().enable();
        Cr4::update(|cr4| cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, on));
    }
}

/// SMAP comes later, if at all (`boot::smap`). UMIP hides the descriptor tables. PCE and TSD are off:
/// guests have no counters and a native TSC.
fn control_registers(features: &Features) {
    // SAFETY: each optional bit is set only if the CPU has it. Global pages are never used.
    unsafe {
        Cr0::update(|cr0| {
            cr0.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
            cr0.insert(
                Cr0Flags::MONITOR_COPROCESSOR
                    | Cr0Flags::NUMERIC_ERROR
                    | Cr0Flags::WRITE_PROTECT
                    | Cr0Flags::ALIGNMENT_MASK,
            );
        });
        Cr4::update(|cr4| {
            cr4.insert(
                Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE | Cr4Flags::DEBUGGING_EXTENSIONS,
            );
            cr4.remove(Cr4Flags::PAGE_GLOBAL);
            cr4.set(Cr4Flags::FSGSBASE, features.fsgsbase);
            cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, features.smep);
            cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, features.umip);
            cr4.set(Cr4Flags::PCID, features.pcid && features.invpcid);
        });
    }
}
