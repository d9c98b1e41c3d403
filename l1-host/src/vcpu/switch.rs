//! Brings a vCPU onto a CPU and takes it off again: everything of it that stays in the CPU's registers
//! while L1 runs.
//! May: msr. Context: irq-off.
//!
//! L1 uses none of these registers, so exits neither save nor restore them.

use super::{Vcpu, alone, state::Cr3State};
use crate::{
    abi_flaw::{Flaw, planted},
    hw::{
        cpu::{self, Selectors},
        mitigations,
        percpu::Cpu,
        xstate,
    },
    memory::paging::NoMemory,
    pti, sched,
    traps::flaw::{self as leak, Flaw as Leak},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::msr::arch;
use switcher::{block::NO_PAGE, tables};

/// What a vCPU that is on no CPU would have in its registers.
#[derive(Debug)]
pub struct Saved {
    xstate: xstate::Area,
    selectors: Selectors,
    fs_base: u64,
    gs_base: u64,
    /// What never entered L1, up to the last time that it left a CPU.
    unseen: Unseen,
    /// What that CPU had counted of others when it came there.
    unseen_at_load: Unseen,
}

impl Saved {
    /// As after reset.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new() -> Result<Self, NoMemory> {
        Ok(Self {
            xstate: xstate::Area::new()?,
            selectors: Selectors::default(),
            fs_base: 0,
            gs_base: 0,
            unseen: Unseen::default(),
            unseen_at_load: Unseen::default(),
        })
    }

    /// DS, ES, FS and GS.
    pub fn selectors(&self) -> [u64; 4] {
        self.selectors.values().map(u64::from)
    }

    /// The bases of FS and GS.
    pub const fn bases(&self) -> (u64, u64) {
        (self.fs_base, self.gs_base)
    }

    /// Back to what it was at first; counters go on.
    pub fn reset(&mut self) {
        self.xstate.reset();
        self.selectors = Selectors::default();
        (self.fs_base, self.gs_base) = (0, 0);
    }
}

impl Vcpu {
    /// Brings it onto `cpu`.
    pub(super) fn load(&mut self, cpu: &Cpu) {
        self.remote.arrive(cpu.index);
        self.door = if sched::keeps_l1_alone() { alone::door() } else { cpu.enter };
        if cpu.last_vm.swap(self.vm.id, Relaxed) != self.vm.id {
            cpu.block.scrub();
            if !leak::planted(Leak::Barriers) {
                mitigations::vm_changed();
            }
            self.vm.window.show_in(&cpu.window);
        }
        if cpu.last_vcpu.swap(self.id, Relaxed) != self.id {
            // Tags are this vCPU's own numbers: another's translations may be under them here, and
            // its own of long ago.
            self.tlb.flush_requested();
        }
        self.tell_steal(cpu);
        self.load_registers(cpu);
        if !planted(Flaw::VectorsLeak) {
            self.saved.xstate.restore();
        }
        cpu::load_selectors(&self.saved.selectors);
        cpu.bases.set_fs(self.saved.fs_base);
        cpu.bases.set_gs(self.saved.gs_base);
        self.saved.unseen_at_load = Unseen::on(cpu);
        // They are of who ran here last.
        cpu.block.absent_page.store(NO_PAGE, Relaxed);
        cpu.block.early_fault[1].store(0, Relaxed);
        self.cr3_state = Cr3State::Stale;
        // Whatever was left for it meanwhile.
        self.notice_outside();
        self.vm.mmu.entering(self.index);
    }

    /// Takes it off `cpu`.
    pub(super) fn unload(&mut self, cpu: &Cpu) {
        if pti::is_off() {
            self.run_on(cpu.block.l1_cr3.load(Relaxed));
        }
        self.vm.mmu.idle(self.index);
        self.saved.selectors = cpu::selectors();
        self.saved.fs_base = cpu.bases.fs();
        self.saved.gs_base = cpu.bases.gs();
        self.saved.xstate.save();
        self.saved.unseen = self.unseen(cpu);
        cpu::clear_data_selectors();
        cpu::load_ldt(0);
    }

    /// Loads CR3. What it was loaded with before may go from now on.
    pub(super) fn run_on(&mut self, root: u64) {
        cpu::load_cr3(root);
        self.root_loads += 1;
        if let Some(previous) = self.previous.take() {
            self.vm.mmu.give_up(previous);
        }
    }

    /// Puts its guest registers into the CPU: after another vCPU ran there.
    fn load_registers(&self, cpu: &Cpu) {
        self.publish(cpu);
        if cpu.features.rdtscp && !planted(Flaw::TscAuxLeaks) {
            cpu::wrmsr(arch::TSC_AUX, self.msrs.tsc_aux());
        }
        cpu.gdt.set_vcpu_index(self.index as u32);
        if !leak::planted(Leak::Slots) {
            self.load_slots(cpu);
        }
        if self.ldt_entries == 0 {
            cpu::load_ldt(0);
        } else {
            cpu.gdt.set_ldt(self.index, self.ldt_entries);
            cpu::load_ldt(tables::LDT_SELECTOR);
        }
    }

    fn load_slots(&self, cpu: &Cpu) {
        for (slot, descriptor) in self.tls.iter().enumerate() {
            cpu.gdt.set_tls(slot, *descriptor);
        }
        cpu.gdt.set_cpunode(self.cpunode);
    }

    /// What never entered L1, while it is on `cpu`.
    pub(super) fn unseen(&self, cpu: &Cpu) -> Unseen {
        let (before, load, now) = (self.saved.unseen, self.saved.unseen_at_load, Unseen::on(cpu));
        Unseen {
            switches: before.switches + (now.switches - load.switches),
            faults: before.faults + (now.faults - load.faults),
        }
    }

    /// The same when it has ended.
    pub(super) const fn all_unseen(&self) -> Unseen {
        self.saved.unseen
    }
}

/// Counts of what the switcher does alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unseen {
    /// Switches between the guest's modes by SYSCALL.
    pub switches: u64,
    /// Page faults that were delivered.
    pub faults: u64,
}

impl Unseen {
    /// All so far on `cpu`.
    fn on(cpu: &Cpu) -> Self {
        let block = cpu.block;
        let switches = block.direct_to_smod.load(Relaxed) + block.direct_to_umod.load(Relaxed);
        Self { switches, faults: block.early_faults.load(Relaxed) }
    }
}
