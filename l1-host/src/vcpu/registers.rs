//! Model-specific registers as the guest sees them (spec part 1.2).
//! May: msr. Context: run-loop, irq-off. Input: guest-controlled.

use super::{Vcpu, apic::Effect, pvcs::PvcsPage, state::Mode};
use crate::{
    abi_flaw::{self, Flaw as AbiFlaw},
    hw::{cpu, percpu::Cpu},
    vm::dirty_flaw::{Flaw, planted},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    addr::{Gfn, Gpa, Gva},
    ext::{self, Features},
    msr::{self, arch, x2apic},
    selectors::USER_CS,
};
use shadow_mmu::GuestMemory;

/// Refused: #GP, or an error from the hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Register values that L1 keeps for a vCPU.
#[derive(Clone, Debug)]
pub struct Msrs {
    pub event_entry: u64,
    retu_rip: u64,
    retu_prefault_rip: u64,
    /// RIP behind the SYSCALLs that return to user mode.
    pub retu_return: u64,
    pub retu_prefault_return: u64,
    pub lstar: u64,
    pub kernel_gs_base: u64,
    pub cr0: u64,
    /// The PCID and cache bits of CR3.
    pub cr3_low: u64,
    pub cr4: u64,
    pub xcr0: u64,
    star: u64,
    cstar: u64,
    sfmask: u64,
    sysenter: [u64; 2],
    vcpu_struct: u64,
    linear_range: u64,
    pat: u64,
    tsc_aux: u64,
    system_time: u64,
    apic_base: u64,
}

const SYSCALL_LENGTH: u64 = 2;
/// No instruction is here: the address is not canonical.
const NOWHERE: u64 = 1 << 63;
/// PAT after reset.
const PAT_DEFAULT: u64 = 0x0007_0406_0007_0406;
/// EFER as guests see it: SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;
/// CR0 as guests start: PG AM WP NE ET MP PE.
const CR0: u64 = 0x8005_0033;
/// CR4 as guests start: PAE OSFXSR OSXMMEXCPT; FSGSBASE and OSXSAVE as the CPU has them.
const CR4: u64 = 0x620;

impl Msrs {
    /// Values after reset.
    #[must_use]
    pub fn new(index: usize) -> Self {
        use x86_64::registers::control::{Cr4, Cr4Flags};
        let shown = Cr4Flags::FSGSBASE | Cr4Flags::OSXSAVE;
        Self {
            event_entry: 0,
            retu_rip: 0,
            retu_prefault_rip: 0,
            retu_return: SYSCALL_LENGTH,
            retu_prefault_return: NOWHERE,
            lstar: 0,
            kernel_gs_base: 0,
            cr0: CR0,
            cr3_low: 0,
            cr4: CR4 | (Cr4::read() & shown).bits(),
            xcr0: 1,
            star: u64::from(USER_CS) << 32 | 0x23 << 48,
            cstar: 0,
            sfmask: 0,
            sysenter: [0; 2],
            vcpu_struct: 0,
            linear_range: msr::linear_address_range(
                msr::DEFAULT_UPPER_SLOTS.start,
                msr::DEFAULT_UPPER_SLOTS.end,
            ),
            pat: PAT_DEFAULT,
            tsc_aux: index as u64,
            system_time: 0,
            // Enabled, x2APIC mode, and the boot CPU's flag.
            apic_base: 0xfee0_0c00 | if index == 0 { 0x100 } else { 0 },
        }
    }
}

impl Msrs {
    /// TSC_AUX, which lies in the CPU.
    pub const fn tsc_aux(&self) -> u64 {
        self.tsc_aux
    }
}

impl Vcpu {
    /// True if the code at the guest's RIP means the GS base MSRs as bare hardware does.
    fn native_gs(&self) -> bool {
        self.vm.features().contains(Features::NATIVE_GS) && !self.vm.in_shim(self.context.rip)
    }

    /// Reads MSR `index`.
    pub(super) fn read_msr(&self, cpu: &Cpu, index: u32) -> Option<u64> {
        let msrs = &self.msrs;
        Some(match index {
            arch::KERNEL_GS_BASE if self.native_gs() => self.pvcs?.user_gsbase(),
            arch::KERNEL_GS_BASE => msrs.kernel_gs_base,
            arch::GS_BASE => cpu.bases.gs(),
            arch::FS_BASE => cpu.bases.fs(),
            arch::TSC => cpu::tsc(),
            arch::TSC_ADJUST => 0,
            arch::TSC_DEADLINE => self.apic.read_deadline(),
            arch::TSC_AUX if cpu.features.rdtscp => msrs.tsc_aux,
            arch::EFER => EFER,
            arch::STAR => msrs.star,
            arch::LSTAR => msrs.lstar,
            arch::CSTAR => msrs.cstar,
            arch::SFMASK => msrs.sfmask,
            arch::SYSENTER_CS => 0,
            arch::SYSENTER_ESP => msrs.sysenter[0],
            arch::SYSENTER_EIP => msrs.sysenter[1],
            arch::APIC_BASE => msrs.apic_base,
            arch::PAT => msrs.pat,
            // Only the lock bit: nothing to enable.
            arch::FEATURE_CONTROL => 1,
            arch::BIOS_SIGN_ID | arch::PLATFORM_ID | arch::DEBUGCTL => 0,
            // Fast strings; no performance monitoring, no BTS.
            arch::MISC_ENABLE => 1 | 1 << 11 | 1 << 12,
            arch::MTRR_CAP | arch::MTRR_DEF_TYPE => 0,
            msr::PVM_LINEAR_ADDRESS_RANGE => msrs.linear_range,
            msr::PVM_VCPU_STRUCT => msrs.vcpu_struct,
            msr::PVM_EVENT_ENTRY => msrs.event_entry,
            msr::PVM_RETU_RIP => msrs.retu_rip,
            msr::KVM_SYSTEM_TIME_NEW => msrs.system_time,
            msr::KVM_STEAL_TIME => self.steal.register(),
            ext::msr::RETU_PREFAULT_RIP => msrs.retu_prefault_rip,
            x2apic::FIRST..=x2apic::LAST => self.apic.read(index, cpu::tsc())?,
            index if msr::PVM_WINDOW.contains(&index) => 0,
            _ => return None,
        })
    }

    /// Writes MSR `index`.
    pub(super) fn write_msr(&mut self, cpu: &Cpu, index: u32, value: u64) -> Result<(), Refused> {
        let canonical = || Gva(value).is_canonical().then_some(()).ok_or(Refused);
        match index {
            arch::TSC_DEADLINE => {
                self.apic.write_deadline(value);
                self.apic.poll_timer(cpu::tsc());
            }
            x2apic::FIRST..=x2apic::LAST => return self.write_apic(index, value),
            arch::KERNEL_GS_BASE if self.native_gs() => {
                canonical()?;
                self.pvcs.as_ref().ok_or(Refused)?.set_user_gsbase(value);
            }
            arch::KERNEL_GS_BASE => {
                canonical()?;
                self.msrs.kernel_gs_base = value;
                self.publish(cpu);
            }
            arch::GS_BASE => {
                canonical()?;
                cpu.bases.set_gs(value);
                if self.native_gs() && self.mode == Mode::Supervisor {
                    self.msrs.kernel_gs_base = value;
                    self.publish(cpu);
                }
            }
            arch::FS_BASE => {
                canonical()?;
                cpu.bases.set_fs(value);
            }
            arch::LSTAR => {
                canonical()?;
                self.msrs.lstar = value;
                self.publish(cpu);
            }
            arch::STAR => {
                // The kernel selector may not be null, the user one must be the fixed one.
                let (kernel, user) = (value >> 32 & 0xfffc, value >> 48 | 3);
                if kernel == 0 || user + 16 != u64::from(USER_CS) {
                    return Err(Refused);
                }
                self.msrs.star = value;
            }
            arch::CSTAR => self.msrs.cstar = value,
            arch::SFMASK => self.msrs.sfmask = value,
            arch::SYSENTER_CS => {}
            arch::SYSENTER_ESP => self.msrs.sysenter[0] = value,
            arch::SYSENTER_EIP => self.msrs.sysenter[1] = value,
            arch::TSC_AUX if cpu.features.rdtscp && value >> 32 == 0 => {
                self.msrs.tsc_aux = value;
                cpu::wrmsr(arch::TSC_AUX, value);
            }
            // What the CPU runs with is fixed; writes that ask for no more are fine.
            arch::EFER if value & !EFER == 0 => {}
            arch::PAT => {
                // Write-combining is 1; 2, 3 and everything past 7 are no memory types.
                let known = value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
                known.then_some(()).ok_or(Refused)?;
                self.msrs.pat = value;
            }
            arch::TSC | arch::TSC_ADJUST | arch::BIOS_SIGN_ID | arch::MISC_ENABLE => {}
            arch::DEBUGCTL | arch::MTRR_DEF_TYPE => {}
            arch::APIC_BASE if value == self.msrs.apic_base => {}
            msr::PVM_VCPU_STRUCT => return self.register_pvcs(cpu, value),
            msr::PVM_EVENT_ENTRY if abi_flaw::planted(AbiFlaw::EntryUnchecked) => {
                self.msrs.event_entry = value;
            }
            msr::PVM_EVENT_ENTRY => {
                canonical()?;
                let supervisor = Gva(value.wrapping_add(msr::EVENT_ENTRY_SUPERVISOR));
                supervisor.is_canonical().then_some(()).ok_or(Refused)?;
                self.msrs.event_entry = value;
                self.publish(cpu);
            }
            msr::PVM_RETU_RIP => {
                self.msrs.retu_rip = value;
                self.msrs.retu_return = value.wrapping_add(SYSCALL_LENGTH);
                self.publish(cpu);
            }
            msr::PVM_LINEAR_ADDRESS_RANGE => return self.set_range(value),
            msr::KVM_SYSTEM_TIME_NEW => self.register_clock(cpu, value)?,
            msr::KVM_STEAL_TIME => self.register_steal(cpu, value)?,
            msr::KVM_WALL_CLOCK_NEW => self.write_wall_clock(cpu, value)?,
            ext::msr::RETU_PREFAULT_RIP if self.vm.features().contains(Features::PREFAULT) => {
                self.msrs.retu_prefault_rip = value;
                let off = value == 0;
                let behind = value.wrapping_add(SYSCALL_LENGTH);
                self.msrs.retu_prefault_return = if off { NOWHERE } else { behind };
            }
            ext::msr::REFLECT_START => self.vm.set_reflect_bound(0, value),
            ext::msr::REFLECT_END => self.vm.set_reflect_bound(1, value),
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// Writes what the direct switch reads into the CPU's block.
    pub(super) fn publish(&self, cpu: &Cpu) {
        let block = cpu.block;
        block.retu_return.store(self.msrs.retu_return, Relaxed);
        block.lstar.store(self.msrs.lstar, Relaxed);
        block.smod_gsbase.store(self.msrs.kernel_gs_base, Relaxed);
        block.event_entry.store(self.msrs.event_entry, Relaxed);
        block.pvcs.store(switcher::layout::pvcs(self.index), Relaxed);
    }

    /// VCPU_STRUCT: a page-aligned address, or 0. An address without RAM is accepted, and fatal
    /// when the PVCS is first needed.
    fn register_pvcs(&mut self, cpu: &Cpu, gpa: u64) -> Result<(), Refused> {
        if gpa & 0xfff != 0 && !abi_flaw::planted(AbiFlaw::PvcsUnaligned) {
            return Err(Refused);
        }
        let gfn = Gfn(gpa >> 12);
        let env = self.vm.env();
        let found = if gpa == 0 { None } else { env.ram.host_frame(gfn).zip(env.page(gfn)) };
        let pvcs = found.map(|(hpa, page)| PvcsPage::new(hpa, page));
        let before = self.vm.window.pvcs(self.index);
        if let Some(hpa) = before.filter(|_| !planted(Flaw::OldPvcs)) {
            // The dirty log tells of it at each look only as long as it is the PVCS.
            self.vm.wrote(env.guest_frame(hpa));
        }
        self.vm.window.set_pvcs(self.index, pvcs.map(|pvcs| pvcs.hpa));
        shadow_mmu::TlbOps::flush_all(env);
        self.set_pvcs(pvcs);
        self.msrs.vcpu_struct = gpa;
        self.publish(cpu);
        Ok(())
    }

    /// No PVCS is registered any more, and the vCPU is on no CPU.
    pub(super) fn drop_pvcs(&mut self) {
        self.vm.window.set_pvcs(self.index, None);
        shadow_mmu::TlbOps::flush_all(self.vm.env());
        self.set_pvcs(None);
    }

    /// LINEAR_ADDRESS_RANGE: 0 restores the default; anything else must lie in it.
    fn set_range(&mut self, value: u64) -> Result<(), Refused> {
        let default = msr::DEFAULT_UPPER_SLOTS;
        let (start, end) = match value {
            0 => (default.start, default.end),
            _ => msr::upper_slots(value).ok_or(Refused)?,
        };
        let empty = start == end;
        if !empty && (start < default.start || end > default.end) {
            return Err(Refused);
        }
        self.msrs.linear_range = msr::linear_address_range(start, end);
        if abi_flaw::planted(AbiFlaw::RangeIgnored) {
            return Ok(());
        }
        self.vm.mmu.set_upper_slots(usize::from(start)..usize::from(end));
        Ok(())
    }

    fn write_apic(&mut self, index: u32, value: u64) -> Result<(), Refused> {
        match self.apic.write(index, value, cpu::tsc()) {
            Effect::None => Ok(()),
            Effect::Fault => Err(Refused),
            Effect::Ipi(icr) => self.send_ipi(icr),
        }
    }

    /// Fixed and lowest priority, which goes to all that are named; vCPUs are started by hypercall, so
    /// start-up messages reach nobody.
    fn send_ipi(&mut self, icr: u64) -> Result<(), Refused> {
        let (vector, mode) = (icr as u8, icr >> 8 & 7);
        if matches!(mode, 0 | 1) {
            self.send_to(destinations(icr, self.index, self.vm.vcpus), vector);
        }
        Ok(())
    }

    /// Requests interrupt `vector` of the vCPUs in `mask`, this one included if it is there.
    pub(super) fn send_to(&mut self, mut mask: u64, vector: u8) {
        while mask != 0 {
            let index = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            if index == self.index {
                self.apic.raise(vector);
            } else if !abi_flaw::planted(AbiFlaw::IpiLost) {
                self.vm.post(index, vector);
            }
        }
    }

    /// kvmclock: the page at `value` describes the TSC. Bit 0 enables.
    fn register_clock(&mut self, cpu: &Cpu, value: u64) -> Result<(), Refused> {
        if value & 1 == 0 {
            self.msrs.system_time = value;
            return Ok(());
        }
        let (scale, shift) = tsc_scale(cpu.clock.tsc_hz);
        // version, pad, tsc_timestamp, system_time, mul, shift, flags (TSC is stable), pad
        let mut time = [0u8; 32];
        time[0..4].copy_from_slice(&2u32.to_le_bytes());
        time[24..28].copy_from_slice(&scale.to_le_bytes());
        time[28] = shift as u8;
        time[29] = 1;
        self.vm.write_physical(Gpa(value & !1), &time).then_some(()).ok_or(Refused)?;
        self.msrs.system_time = value;
        Ok(())
    }

    /// kvmclock: writes the wall clock at TSC 0 to the page at `value`.
    fn write_wall_clock(&self, cpu: &Cpu, value: u64) -> Result<(), Refused> {
        let at_zero = crate::boot::wall_ns_at_tsc_zero(&cpu.clock);
        let mut clock = [0u8; 12];
        clock[0..4].copy_from_slice(&2u32.to_le_bytes());
        clock[4..8].copy_from_slice(&((at_zero / 1_000_000_000) as u32).to_le_bytes());
        clock[8..12].copy_from_slice(&((at_zero % 1_000_000_000) as u32).to_le_bytes());
        self.vm.write_physical(Gpa(value), &clock).then_some(()).ok_or(Refused)
    }
}

/// The vCPUs that the ICR value `icr` of vCPU `index` names, of `vcpus`: a bit for each.
fn destinations(icr: u64, index: usize, vcpus: usize) -> u64 {
    const BROADCAST: u64 = 0xffff_ffff;
    let all = u64::MAX >> (64 - vcpus);
    let (own, destination) = (1u64 << index, icr >> 32);
    match icr >> 18 & 3 {
        0 if destination == BROADCAST => all,
        0 if icr >> 11 & 1 == 0 && abi_flaw::planted(AbiFlaw::IpiToSender) => own,
        // Physical: an id.
        0 if icr >> 11 & 1 == 0 => 1u64.checked_shl(destination as u32).unwrap_or(0) & all,
        // Logical: a cluster of 16, and which of it.
        0 => (destination & 0xffff).checked_shl(16 * (destination >> 16) as u32).unwrap_or(0) & all,
        1 => own,
        2 => all,
        _ => all & !own,
    }
}

/// pvclock's scale: nanoseconds = (ticks << shift) * mul >> 32, shift may be negative.
fn tsc_scale(tsc_hz: u64) -> (u32, i8) {
    let mut shift = 0i8;
    let mut hz = u128::from(tsc_hz);
    while hz > 2_000_000_000 {
        hz >>= 1;
        shift -= 1;
    }
    while hz <= 1_000_000_000 {
        hz <<= 1;
        shift += 1;
    }
    (((1_000_000_000u128 << 32) / hz) as u32, shift)
}
