//! Finds out what the CPU offers. Every absent feature has a complete alternative.
//! May: msr. Context: boot.

use super::cpu;
use pv_abi::msr::arch;
use raw_cpuid::{CpuId, CpuIdReader, Hypervisor, TopologyType};

/// Features that change what L1 does.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub struct Features {
    pub pcid: bool,
    pub invpcid: bool,
    pub fsgsbase: bool,
    pub rdtscp: bool,
    pub smep: bool,
    pub smap: bool,
    pub umip: bool,
    pub x2apic: bool,
    pub tsc_deadline: bool,
    pub pages_1g: bool,
    pub xsave: bool,
    pub invariant_tsc: bool,
    pub cpuid_faulting: bool,
    pub physical_bits: u32,
}

impl Features {
    /// Asks the CPU.
    #[must_use]
    pub fn detect() -> Self {
        let cpuid = CpuId::new();
        Self { cpuid_faulting: cpuid_faulting(&cpuid), ..Self::read(&cpuid) }
    }

    fn read<R: CpuIdReader>(cpuid: &CpuId<R>) -> Self {
        let basic = cpuid.get_feature_info();
        let extended = cpuid.get_extended_feature_info();
        let amd = cpuid.get_extended_processor_and_feature_identifiers();
        let basic = |test: fn(&raw_cpuid::FeatureInfo) -> bool| basic.as_ref().is_some_and(test);
        let seven =
            |test: fn(&raw_cpuid::ExtendedFeatures) -> bool| extended.as_ref().is_some_and(test);
        Self {
            pcid: basic(raw_cpuid::FeatureInfo::has_pcid),
            x2apic: basic(raw_cpuid::FeatureInfo::has_x2apic),
            tsc_deadline: basic(raw_cpuid::FeatureInfo::has_tsc_deadline),
            xsave: basic(raw_cpuid::FeatureInfo::has_xsave),
            invpcid: seven(raw_cpuid::ExtendedFeatures::has_invpcid),
            fsgsbase: seven(raw_cpuid::ExtendedFeatures::has_fsgsbase),
            smep: seven(raw_cpuid::ExtendedFeatures::has_smep),
            smap: seven(raw_cpuid::ExtendedFeatures::has_smap),
            umip: seven(raw_cpuid::ExtendedFeatures::has_umip),
            rdtscp: amd.as_ref().is_some_and(|f| f.has_rdtscp()),
            pages_1g: amd.as_ref().is_some_and(|f| f.has_1gib_pages()),
            // Said by no leaf.
            cpuid_faulting: false,
            invariant_tsc: cpuid
                .get_advanced_power_mgmt_info()
                .is_some_and(|power| power.has_invariant_tsc()),
            physical_bits: cpuid
                .get_processor_capacity_feature_info()
                .map_or(36, |capacity| u32::from(capacity.physical_address_bits())),
        }
    }
}

/// How many of the lower bits of an APIC id number the threads of a core, as the CPU shows it.
#[must_use]
pub fn thread_bits() -> u32 {
    read_thread_bits(&CpuId::new())
}

fn read_thread_bits<R: CpuIdReader>(cpuid: &CpuId<R>) -> u32 {
    let mut levels = cpuid.get_extended_topology_info().into_iter().flatten();
    let threads = levels.find(|level| level.level_type() == TopologyType::SMT);
    threads.map_or(0, |level| level.shift_right_for_next_apic_id())
}

/// CPUID outside CPL0 can be made to fault. Asked only where the MSR that says so is known to exist:
/// under KVM, which has it whatever the CPU.
fn cpuid_faulting(cpuid: &CpuId<impl CpuIdReader>) -> bool {
    const FAULTS: u64 = 1 << 31;
    let hypervisor = cpuid.get_hypervisor_info();
    let kvm = hypervisor.is_some_and(|info| info.identify() == Hypervisor::KVM);
    kvm && cpu::rdmsr(arch::PLATFORM_INFO) & FAULTS != 0
}
