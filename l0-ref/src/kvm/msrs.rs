//! Knows which MSRs KVM keeps for a vCPU, and tells it which L2 may access without an exit.

use crate::{
    abi::tables::{HELD, HELD_WITH_APIC, Policy},
    backend::{Controllers, Refused},
};
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_MSR_FILTER_MAX_RANGES, kvm_enable_cap,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use std::ops::RangeInclusive;

/// MSRs of KVM's own, for its guests: not L2's affair, but for the clock, which KVM shows L1 as well (rule
/// L0-CPUID-5) and keeps in L2's own memory.
const OF_KVM: [RangeInclusive<u32>; 3] =
    [0x11..=0x12, 0x4000_0000..=0x4000_ffff, 0x4b56_4d02..=0x4b56_4dff];
/// KVM's filter cannot look at these.
const NOT_FILTERED: RangeInclusive<u32> = 0x800..=0x8ff;

/// MSRs that a rule may pass: those KVM lists, but its own.
#[must_use]
pub fn passable(listed: &[u32]) -> Vec<u32> {
    let foreign = |msr: &u32| !OF_KVM.iter().any(|run| run.contains(msr));
    listed.iter().copied().filter(foreign).collect()
}

/// Makes every access that KVM does not answer an exit.
///
/// # Errors
/// KVM's.
pub fn enable_exits(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let reasons =
        KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN;
    let args = [u64::from(reasons), 0, 0, 0];
    vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, args, ..Default::default() })
}

/// Lets KVM answer what is held always and what `policy` passes, and nothing else.
///
/// # Errors
/// More runs than KVM's filter takes, or KVM's.
pub fn set_filter(vm: &VmFd, controllers: Controllers, policy: &Policy) -> Result<(), Refused> {
    let apic = if controllers == Controllers::L0 { &HELD_WITH_APIC[..] } else { &[] };
    let held = HELD.iter().chain(apic).cloned();
    let runs: Vec<_> =
        held.chain(policy.passed()).filter(|run| !NOT_FILTERED.contains(run.start())).collect();
    if runs.len() > KVM_MSR_FILTER_MAX_RANGES as usize {
        return Err(Refused::NoMemory);
    }
    let count = |run: &RangeInclusive<u32>| run.end() - run.start() + 1;
    let bitmaps: Vec<Vec<u8>> =
        runs.iter().map(|run| vec![0xff; count(run).div_ceil(8) as usize]).collect();
    let ranges: Vec<MsrFilterRange<'_>> = runs
        .iter()
        .zip(&bitmaps)
        .map(|(run, bitmap)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: *run.start(),
            msr_count: count(run),
            bitmap,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)
        .map_err(|error| Refused::Failed(error.errno()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msrs_of_kvm_are_not_passed() {
        assert_eq!(passable(&[0x10, 0x11, 0x48, 0x4b56_4d02, 0x4000_0000]), [0x10, 0x48]);
    }
}
