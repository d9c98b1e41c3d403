//! CPUID as the synthetic instruction answers it (spec part 1.1).
//! May: nothing but CPUID. Context: run-loop. Input: guest-controlled leaf numbers.

use super::{Vcpu, state::Mode};
use crate::{
    abi_flaw::{Flaw, planted},
    hw::percpu::Cpu,
    vm::Kind,
};
use pv_abi::{cpuid, ext, stock_cpuid};

/// The four registers.
pub type Leaf = [u32; 4];

/// Features that L1 does not give to guests, by leaf: EBX, ECX, EDX masks to clear.
mod hidden {
    /// Leaf 1, ECX: MONITOR, VMX, SMX, PDCM, x2APIC is offered, TSC_DEADLINE is offered.
    pub const LEAF1_ECX: u32 = 1 << 3 | 1 << 5 | 1 << 6 | 1 << 15;
    /// Leaf 1, EDX: DS, ACPI, TM.
    pub const LEAF1_EDX: u32 = 1 << 21 | 1 << 22 | 1 << 29;
    /// Leaf 7, EBX: SMAP, MPX, RDT-M, RDT-A, Intel PT.
    pub const LEAF7_EBX: u32 = 1 << 20 | 1 << 14 | 1 << 12 | 1 << 15 | 1 << 25;
    /// Leaf 7, ECX: UMIP, PKU, OSPKE, WAITPKG, CET SS, LA57, bus lock, PKS.
    pub const LEAF7_ECX: u32 =
        1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16 | 1 << 24 | 1 << 31;
    /// Leaf 7, EDX: UINTR, CET IBT, AMX, SPEC_CTRL, STIBP, L1D_FLUSH, ARCH_CAPABILITIES,
    /// CORE_CAPABILITIES, SSBD.
    pub const LEAF7_EDX: u32 = 1 << 5 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25 | 0x3f << 26;
    /// Leaf 0xd.1, EAX: XSAVES.
    pub const LEAFD1_EAX: u32 = 1 << 3;
    /// Leaf 0x80000001, ECX: SVM, and AMD's counters and watchdogs.
    pub const EXTENDED_ECX: u32 = 1 << 2 | 1 << 10 | 1 << 13 | 1 << 15 | 0x3f << 23;
    /// Leaf 0x80000008, EBX: IBPB, IBRS, STIBP, SSBD.
    pub const ADDRESS_EBX: u32 = 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24 | 1 << 25;
}

/// Set for guests whatever the CPU says: PCID (virtual), x2APIC, TSC_DEADLINE, HYPERVISOR.
const LEAF1_ECX_SET: u32 = 1 << 17 | 1 << 21 | 1 << 24 | 1 << 31;
/// SMEP is emulated.
const LEAF7_EBX_SET: u32 = 1 << 7;

impl Vcpu {
    /// The leaf as this vCPU sees it.
    pub(super) fn cpuid(&self, cpu: &Cpu, leaf: u32, subleaf: u32) -> Leaf {
        match leaf {
            0x4000_0000..=0x4fff_ffff => self.hypervisor_leaf(cpu, leaf),
            _ => self.masked_leaf(leaf, subleaf),
        }
    }

    /// The leaf as CPUID without the prefix says it, where it traps. The shim is told of the machine, and
    /// tells its kernel what follows from that.
    pub(super) fn plain_cpuid(&self, cpu: &Cpu, leaf: u32, subleaf: u32) -> Leaf {
        let machine = || {
            let machine = raw_cpuid::cpuid!(leaf, subleaf);
            [machine.eax, machine.ebx, machine.ecx, machine.edx]
        };
        match self.vm.kind {
            Kind::Native => self.cpuid(cpu, leaf, subleaf),
            Kind::Stock(_)
                if self.mode == Mode::Supervisor && self.vm.in_shim(self.context.rip) =>
            {
                machine()
            }
            Kind::Stock(frames) => stock_cpuid::leaf(leaf, subleaf, frames.end, machine),
        }
    }

    fn masked_leaf(&self, leaf: u32, subleaf: u32) -> Leaf {
        let host = raw_cpuid::cpuid!(leaf, subleaf);
        let [mut eax, mut ebx, mut ecx, mut edx] = [host.eax, host.ebx, host.ecx, host.edx];
        match leaf {
            1 => {
                ecx = ecx & !hidden::LEAF1_ECX | LEAF1_ECX_SET;
                edx &= !hidden::LEAF1_EDX;
                ebx = ebx & 0x00ff_ffff | (self.index as u32) << 24;
            }
            7 if subleaf == 0 => {
                ebx = ebx & !hidden::LEAF7_EBX | LEAF7_EBX_SET;
                ecx &= !hidden::LEAF7_ECX;
                edx &= !hidden::LEAF7_EDX;
                if planted(Flaw::SmapShown) {
                    ebx |= 1 << 20;
                }
            }
            // No performance counters; topology: one thread, one core.
            0xa => [eax, ebx, ecx, edx] = [0; 4],
            0xb | 0x1f => [eax, ebx, ecx, edx] = [0, 0, subleaf & 0xff, self.index as u32],
            0xd if subleaf == 1 => eax &= !hidden::LEAFD1_EAX,
            0x8000_0001 => ecx &= !hidden::EXTENDED_ECX,
            0x8000_0008 => ebx &= !hidden::ADDRESS_EBX,
            0x8000_000a | 0x8000_001f => [eax, ebx, ecx, edx] = [0; 4],
            _ => {}
        }
        [eax, ebx, ecx, edx]
    }

    fn version_leaf(&self) -> Leaf {
        let [offered, enabled] = [self.vm.offered(), self.vm.features()].map(|set| set.bits());
        if planted(Flaw::MajorVersion) {
            return [ext::VERSION + (1 << 16), offered, enabled, 0];
        }
        if planted(Flaw::MinorVersion) {
            return [ext::VERSION + 1, offered | 1 << 20, enabled, 7];
        }
        let strange = if planted(Flaw::StrangeFeature) { 1 << 20 } else { 0 };
        [ext::VERSION, offered | strange, enabled, 0]
    }

    fn hypervisor_leaf(&self, cpu: &Cpu, leaf: u32) -> Leaf {
        let [kvm, roost] = [cpuid::KVM_SIGNATURE, cpuid::ROOST_SIGNATURE];
        match leaf {
            cpuid::KVM_BASE if planted(Flaw::Signature) => {
                [cpuid::KVM_TIMING, roost[0], kvm[1], kvm[2]]
            }
            cpuid::ROOST_BASE..=cpuid::ROOST_MAX if planted(Flaw::NoExtension) => [0; 4],
            cpuid::KVM_BASE => [cpuid::KVM_TIMING, kvm[0], kvm[1], kvm[2]],
            0x4000_0001 => {
                let clock = cpuid::KVM_FEATURE_CLOCKSOURCE2 | cpuid::KVM_FEATURE_CLOCKSOURCE_STABLE;
                [clock | cpuid::KVM_FEATURE_STEAL_TIME, 0, 0, 0]
            }
            cpuid::KVM_TIMING => {
                let khz = (cpu.clock.tsc_hz / 1000) as u32;
                [khz, khz, 0, 0]
            }
            cpuid::ROOST_BASE => [cpuid::ROOST_MAX, roost[0], roost[1], roost[2]],
            0x4000_0401 => self.version_leaf(),
            cpuid::ROOST_MAX => [ext::window::MAX_VCPUS as u32, ext::notes::ENTRIES as u32, 0, 0],
            _ => [0; 4],
        }
    }
}
