//! Looks at this machine's CPU, as far as it matters to L1.

use raw_cpuid::{CpuId, CpuIdReader, Hypervisor};
use std::fs;

/// A feature that L1 uses where it finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its usual name.
    pub name: &'static str,
    /// Whether this CPU has it.
    pub present: bool,
}

/// The features that L1 sees with `-cpu host` under KVM. It has an alternative for each, so an
/// absent one costs speed or depth of defence only.
pub fn features<R: CpuIdReader>(cpu: &CpuId<R>) -> Vec<Feature> {
    let basic = cpu.get_feature_info();
    let structured = cpu.get_extended_feature_info();
    let extended = cpu.get_extended_processor_and_feature_identifiers();
    let basic = |has: fn(&raw_cpuid::FeatureInfo) -> bool| basic.as_ref().is_some_and(has);
    let structured =
        |has: fn(&raw_cpuid::ExtendedFeatures) -> bool| structured.as_ref().is_some_and(has);
    let extended = |has: fn(&raw_cpuid::ExtendedProcessorFeatureIdentifiers) -> bool| {
        extended.as_ref().is_some_and(has)
    };
    [
        ("fsgsbase", structured(|f| f.has_fsgsbase())),
        ("smep", structured(|f| f.has_smep())),
        ("smap", structured(|f| f.has_smap())),
        ("umip", structured(|f| f.has_umip())),
        ("pcid", basic(|f| f.has_pcid())),
        ("invpcid", structured(|f| f.has_invpcid())),
        ("rdtscp", extended(|f| f.has_rdtscp())),
        ("x2apic", basic(|f| f.has_x2apic())),
        ("tsc_deadline", basic(|f| f.has_tsc_deadline())),
        ("pdpe1gb", extended(|f| f.has_1gib_pages())),
    ]
    .map(|(name, present)| Feature { name, present })
    .into()
}

/// Why programs of a guest could reach this machine's hypervisor or kernel past L1, if they can:
/// the VMware backdoor port answers at CPL3, whatever the I/O permissions say.
pub fn backdoor<R: CpuIdReader>(cpu: &CpuId<R>) -> Option<&'static str> {
    if cpu.get_hypervisor_info().is_some_and(|info| info.identify() == Hypervisor::VMware) {
        return Some("the hypervisor below is VMware, whose port 0x5658 answers at CPL3");
    }
    let switch = fs::read_to_string("/sys/module/kvm/parameters/enable_vmware_backdoor");
    switch
        .is_ok_and(|value| value.trim() == "Y")
        .then_some("KVM here emulates VMware's port 0x5658 at CPL3 (enable_vmware_backdoor=Y)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use raw_cpuid::CpuIdResult;

    /// Leaf 0x4000_0000 of a hypervisor, and no feature but FSGSBASE and PCID.
    fn cpu(vendor: &'static [u8; 12]) -> CpuId<impl CpuIdReader> {
        CpuId::with_cpuid_reader(move |leaf: u32, _: u32| {
            let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
            match leaf {
                0 => CpuIdResult { eax: 7, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 },
                1 => CpuIdResult { eax: 0, ebx: 0, ecx: 1 << 31 | 1 << 17, edx: 0 },
                7 => CpuIdResult { eax: 0, ebx: 1, ecx: 0, edx: 0 },
                0x4000_0000 => {
                    CpuIdResult { eax: 0x4000_0001, ebx: word(0), ecx: word(4), edx: word(8) }
                }
                0x8000_0000 => CpuIdResult { eax: 0x8000_0001, ebx: 0, ecx: 0, edx: 0 },
                _ => CpuIdResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
            }
        })
    }

    #[test]
    fn features_are_read_from_their_leaves() {
        let present: Vec<_> = features(&cpu(b"KVMKVMKVM\0\0\0"))
            .into_iter()
            .filter(|feature| feature.present)
            .map(|feature| feature.name)
            .collect();
        assert_eq!(present, ["fsgsbase", "pcid"]);
    }

    #[test]
    fn vmware_is_known_by_its_signature() {
        assert!(backdoor(&cpu(b"VMwareVMware")).unwrap().contains("VMware"));
    }
}
