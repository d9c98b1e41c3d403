//! Decides what CPUID tells L1: what KVM supports, without virtualization.

use crate::abi::offer;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use pv_abi::l0::Info;

/// Leaves and bits, as the manuals name them.
mod bit {
    pub const LEAF1_ECX_VMX: u32 = 1 << 5;
    pub const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
    pub const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
    pub const EXTENDED1_ECX_SVM: u32 = 1 << 2;
}

/// The leaf of SVM's own features.
const SVM_FEATURES: u32 = 0x8000_000a;
/// KVM's leaves for guests.
const HYPERVISOR: u32 = 0x4000_0000;
/// Where KVM and VMware tell the rates of TSC and APIC timer, in kHz.
const TIMING: u32 = HYPERVISOR + 0x10;
/// KVM's in-kernel APIC timer counts nanoseconds.
const APIC_KHZ: u32 = 1_000_000;

/// What differs between machines and CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Rate of the TSC.
    pub tsc_khz: u32,
    /// Whether the APIC timer can wait for a TSC value.
    pub tsc_deadline: bool,
    /// CPUs of the machine.
    pub cpus: u8,
}

/// The table of the CPU with APIC id `apic`, from what KVM supports, with the offer of the ABI.
#[must_use]
pub fn for_l1(
    supported: &[kvm_cpuid_entry2],
    facts: &Facts,
    offer: Option<&Info>,
    apic: u8,
) -> Vec<kvm_cpuid_entry2> {
    let mut table: Vec<_> = supported
        .iter()
        .filter(|entry| entry.function != SVM_FEATURES)
        .map(|entry| adapt(*entry, facts, apic))
        .collect();
    table.push(kvm_cpuid_entry2 {
        function: TIMING,
        eax: facts.tsc_khz,
        ebx: APIC_KHZ,
        ..Default::default()
    });
    let block = offer.iter().flat_map(|info| offer::entries(info));
    table.extend(block.map(|(function, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }));
    table
}

fn adapt(mut entry: kvm_cpuid_entry2, facts: &Facts, apic: u8) -> kvm_cpuid_entry2 {
    match entry.function {
        1 => {
            entry.ecx &= !bit::LEAF1_ECX_VMX;
            entry.ecx |= bit::LEAF1_ECX_HYPERVISOR;
            if facts.tsc_deadline {
                entry.ecx |= bit::LEAF1_ECX_TSC_DEADLINE;
            }
            entry.ebx = entry.ebx & 0xffff | u32::from(facts.cpus) << 16 | u32::from(apic) << 24;
        }
        0xb | 0x1f => entry.edx = u32::from(apic),
        HYPERVISOR => entry.eax = entry.eax.max(TIMING),
        0x8000_0001 => entry.ecx &= !bit::EXTENDED1_ECX_SVM,
        0x8000_001e => entry.eax = u32::from(apic),
        _ => {}
    }
    entry
}

/// A table as KVM takes it; `None` if it has too many entries.
#[must_use]
pub fn table(entries: &[kvm_cpuid_entry2]) -> Option<CpuId> {
    CpuId::from_entries(entries).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts { tsc_khz: 2_000_000, tsc_deadline: true, cpus: 2 };

    #[test]
    fn virtualization_is_hidden() {
        let all = |function| kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let supported = [1, 0x4000_0000, 0x8000_0001, SVM_FEATURES].map(all);
        let table = for_l1(&supported, &FACTS, None, 1);
        let leaf = |function| table.iter().find(|entry| entry.function == function);
        assert_eq!(leaf(1).unwrap().ecx & bit::LEAF1_ECX_VMX, 0);
        assert_eq!(leaf(1).unwrap().ebx >> 16, 0x0102);
        assert_eq!(leaf(0x8000_0001).unwrap().ecx & bit::EXTENDED1_ECX_SVM, 0);
        assert_eq!(leaf(SVM_FEATURES), None);
        assert_eq!(leaf(TIMING).map(|entry| entry.eax), Some(2_000_000));
    }

    #[test]
    fn the_deadline_timer_is_shown_where_there_is_one() {
        let leaf = kvm_cpuid_entry2 { function: 1, ..Default::default() };
        let ecx = |facts| for_l1(&[leaf], &facts, None, 0)[0].ecx & bit::LEAF1_ECX_TSC_DEADLINE;
        assert_ne!(ecx(FACTS), 0);
        assert_eq!(ecx(Facts { tsc_deadline: false, ..FACTS }), 0);
    }
}
