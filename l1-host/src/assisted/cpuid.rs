//! What CPUID tells a guest that L0 runs.
//! May: nothing.
//!
//! L0 gave L1 the features of a plain virtual machine, so they are the guest's too; what names a CPU
//! or counts them is the guest's own. L0 answers from this table and never asks L1.

use super::msrs::Hidden;
use alloc::vec::Vec;
use pv_abi::{
    cpuid::{KVM_FEATURE_CLOCKSOURCE_STABLE, KVM_FEATURE_CLOCKSOURCE2},
    l0::list::{CpuidLeaf, LeafFlags},
};

/// CPUID as L1 sees it: (leaf, subleaf) to EAX, EBX, ECX, EDX.
type Own<'a> = &'a dyn Fn(u32, u32) -> [u32; 4];

const HYPERVISOR: u32 = 0x4000_0000;
const EXTENDED: u32 = 0x8000_0000;
/// How many leaves of each kind are looked at; the highest of today's CPUs is 0x26.
const LEAVES: u32 = 0x40;
/// A CPU that lacks a kind answers with another leaf; the highest leaf of a kind is below this.
const KIND: u32 = 0x1_0000;

const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const XCR0_PKRU: u64 = 1 << 9;
const ECX_PKU: u32 = 1 << 3 | 1 << 4;
const EAX_XSAVES: u32 = 1 << 3;
const EDX_MCE: u32 = 1 << 7;
const EDX_MCA: u32 = 1 << 14;
const EDX_HTT: u32 = 1 << 28;
const EXTENDED_FEATURES: u32 = EXTENDED + 1;

/// Who asks. The local APIC is L0's.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// The vCPU's number.
    pub vcpu: u32,
    /// Of how many.
    pub vcpus: u32,
    /// State components that L1 itself has enabled, a value of XCR0: more it does not know to work.
    pub xcr0: u64,
}

/// The table for `who`, without `hidden`: at most `most` leaves, those that answer zero left out.
#[must_use]
pub fn table(own: Own<'_>, who: &Who, hidden: &[Hidden], most: usize) -> Vec<CpuidLeaf> {
    let mut leaves = Vec::new();
    for base in [0, HYPERVISOR, EXTENDED] {
        let max = own(base, 0)[0];
        if (base..base + KIND).contains(&max) {
            let last = max.min(base + LEAVES - 1);
            (base..=last).for_each(|leaf| add_leaf(&mut leaves, own, leaf));
        }
    }
    for leaf in &mut leaves {
        adapt(leaf, who);
        for hidden in hidden.iter().filter(|hidden| hidden.leaf == leaf.leaf) {
            leaf.answer[hidden.register] &= !hidden.bits;
        }
    }
    fit_state_size(&mut leaves);
    leaves.retain(|leaf| leaf.answer != [0; 4]);
    // The last ones say least: they describe caches and topology of the extended leaves.
    leaves.truncate(most);
    leaves
}

fn add_leaf(leaves: &mut Vec<CpuidLeaf>, own: Own<'_>, leaf: u32) {
    let Some(subleaves) = subleaves(own, leaf) else {
        leaves.push(CpuidLeaf { leaf, answer: own(leaf, 0), ..CpuidLeaf::default() });
        return;
    };
    leaves.extend((0..subleaves).map(|subleaf| CpuidLeaf {
        leaf,
        subleaf,
        flags: LeafFlags::SUBLEAF.bits(),
        reserved: 0,
        answer: own(leaf, subleaf),
    }));
}

/// The size of all state is that of the components which are left.
fn fit_state_size(leaves: &mut [CpuidLeaf]) {
    const LEGACY: u32 = 576;
    let components = leaves.iter().filter(|leaf| leaf.leaf == 0xd && leaf.subleaf >= 2);
    let size = components.map(|leaf| leaf.answer[0] + leaf.answer[1]).fold(LEGACY, u32::max);
    let whole = leaves.iter_mut().find(|leaf| leaf.leaf == 0xd && leaf.subleaf == 0);
    if let Some(whole) = whole.filter(|leaf| leaf.answer[2] != 0) {
        whole.answer[2] = size;
    }
}

/// How many subleaves `leaf` has, if ECX matters to it.
fn subleaves(own: Own<'_>, leaf: u32) -> Option<u32> {
    // Lists of caches end with one of type 0.
    let caches = |leaf| (0..8).take_while(|&sub| own(leaf, sub)[0] & 0x1f != 0).count() as u32;
    match leaf {
        0x4 | 0x8000_001d => Some(caches(leaf)),
        0x7 => Some(own(leaf, 0)[0].min(3) + 1),
        // One level of one thread, and the end.
        0xb => Some(2),
        // Components of the saved state, by bit of XCR0.
        0xd => Some(16),
        _ => None,
    }
}

/// Makes the guest's what would be L1's.
fn adapt(leaf: &mut CpuidLeaf, who: &Who) {
    let Who { vcpu, vcpus, xcr0 } = *who;
    let [eax, ebx, ecx, edx] = &mut leaf.answer;
    match (leaf.leaf, leaf.subleaf) {
        (1, _) => {
            *ebx = *ebx & 0xffff | vcpu << 24 | vcpus << 16;
            *ecx |= ECX_X2APIC | ECX_TSC_DEADLINE | ECX_HYPERVISOR;
            *edx = if vcpus > 1 { *edx | EDX_HTT } else { *edx & !EDX_HTT };
            // Nobody would report machine checks.
            *edx &= !(EDX_MCE | EDX_MCA);
        }
        // Of what KVM offers its guests, the clock.
        (0x4000_0001, _) => {
            *eax &= KVM_FEATURE_CLOCKSOURCE2 | KVM_FEATURE_CLOCKSOURCE_STABLE;
        }
        (EXTENDED_FEATURES, _) => *edx &= !(EDX_MCE | EDX_MCA),
        // Thread level: one; core level: all. The APIC id is the vCPU's number.
        (0xb, 0) => (*eax, *ebx, *ecx, *edx) = (0, 1, 0x100, vcpu),
        (0xb, _) => {
            let bits = vcpus.next_power_of_two().trailing_zeros();
            (*eax, *ebx, *ecx, *edx) = (bits, vcpus, 0x201, vcpu);
        }
        (7, 0) if xcr0 & XCR0_PKRU == 0 => *ecx &= !ECX_PKU,
        (0xd, 0) => (*eax, *edx) = (*eax & xcr0 as u32, *edx & (xcr0 >> 32) as u32),
        // No supervisor state.
        (0xd, 1) => (*eax, *ecx, *edx) = (*eax & !EAX_XSAVES, 0, 0),
        (0xd, component) if xcr0 >> component & 1 == 0 => leaf.answer = [0; 4],
        // Another list of the same.
        (0x1f, _) => leaf.answer = [0; 4],
        (0x8000_0008, _) => *ecx = *ecx & !0xf0ff | (vcpus - 1),
        (0x8000_001e, _) => (*eax, *ebx, *ecx) = (vcpu, vcpu, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(leaf: u32, subleaf: u32) -> [u32; 4] {
        match (leaf, subleaf) {
            (0, _) => [0x1f, 1, 2, 3],
            (1, _) => [0x800f12, 0x0102_0800, 0, EDX_HTT | 1],
            (4, 0..3) => [1 + subleaf, 0, 0, 0],
            (7, 0) => [0, 0xff, 0, 0],
            (0xb, _) => [9; 4],
            (0x1f, _) => [9; 4],
            (0xd, 0) => [0x207, 832, 2696, 0],
            (0xd, 1) => [0xf, 0, 0, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 9) => [8, 2688, 0, 0],
            (HYPERVISOR, _) => [HYPERVISOR + 1, 0x4b4d_564b, 0x564b_4d56, 0x4d],
            (0x4000_0001, _) => [u32::MAX, 0, 0, 0],
            (EXTENDED, _) => [EXTENDED + 8, 0, 0, 0],
            (0x8000_0008, _) => [48, 0, 0xf0ff, 0],
            _ => [0; 4],
        }
    }

    fn find(table: &[CpuidLeaf], leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
        let same = |entry: &&CpuidLeaf| entry.leaf == leaf && entry.subleaf == subleaf;
        table.iter().find(same).map(|entry| entry.answer)
    }

    #[test]
    fn the_guest_has_its_own_number() {
        let table = table(&own, &Who { vcpu: 3, vcpus: 4, xcr0: 7 }, &[], 64);
        let [_, ebx, ecx, edx] = find(&table, 1, 0).unwrap();
        assert_eq!(ebx, 3 << 24 | 4 << 16 | 0x0800);
        assert_eq!(ecx, ECX_X2APIC | ECX_TSC_DEADLINE | ECX_HYPERVISOR);
        assert_eq!(edx, EDX_HTT | 1);
        assert_eq!(find(&table, 0xb, 0), Some([0, 1, 0x100, 3]));
        assert_eq!(find(&table, 0xb, 1), Some([2, 4, 0x201, 3]));
        assert_eq!(find(&table, 0x1f, 0), None, "a second list of CPUs");
        assert_eq!(find(&table, 0x8000_0008, 0).unwrap()[2], 3);
    }

    #[test]
    fn a_high_maximum_loses_no_leaf() {
        let many = |leaf, subleaf| match leaf {
            0 => [0x123, 1, 2, 3],
            HYPERVISOR => [7; 4],
            EXTENDED => [EXTENDED + 0x21, 1, 2, 3],
            _ => own(leaf, subleaf),
        };
        let table = table(&many, &Who { vcpu: 0, vcpus: 1, xcr0: 7 }, &[], 64);
        assert_eq!(find(&table, EXTENDED + 8, 0), Some([48, 0, 0, 0]));
        assert!(find(&table, 1, 0).is_some());
        assert_eq!(find(&table, HYPERVISOR, 0), None, "what is no leaf of that kind");
    }

    #[test]
    fn state_is_what_l1_has_enabled() {
        let who = |xcr0| Who { vcpu: 0, vcpus: 1, xcr0 };
        let avx = table(&own, &who(7), &[], 64);
        assert_eq!(find(&avx, 0xd, 0), Some([7, 832, 832, 0]));
        assert_eq!((find(&avx, 0xd, 1), find(&avx, 0xd, 9)), (Some([7, 0, 0, 0]), None));
        let all = table(&own, &who(0x207), &[], 64);
        assert_eq!(find(&all, 0xd, 0), Some([0x207, 832, 2696, 0]));
    }

    #[test]
    fn lists_have_their_length() {
        let who = Who { vcpu: 0, vcpus: 1, xcr0: 7 };
        let table = table(&own, &who, &[], 64);
        let count = |leaf| table.iter().filter(|entry| entry.leaf == leaf).count();
        assert_eq!((count(4), count(7), count(0xd)), (3, 1, 3));
        let clocks = KVM_FEATURE_CLOCKSOURCE2 | KVM_FEATURE_CLOCKSOURCE_STABLE;
        assert_eq!(find(&table, 0x4000_0001, 0), Some([clocks, 0, 0, 0]));
        let clock = Hidden { leaf: 0x4000_0001, register: 0, bits: clocks };
        let without = super::table(&own, &who, &[clock], 64);
        assert_eq!(find(&without, 0x4000_0001, 0), None, "L0 does not hold its MSRs");
        assert_eq!(super::table(&own, &who, &[], 5).len(), 5);
    }
}
