//! What L0 does when a guest that it runs accesses an MSR, so that L1 is never asked.
//! May: nothing.
//!
//! L0 holds the architectural ones without a rule; what has no rule is #GP, which kernels expect of
//! a virtual machine.

use alloc::vec::Vec;
use pv_abi::l0::list::{MsrAction, MsrFlags, MsrRange};

/// MSRs that L0 may hold: first and how many. Without them a kernel does as on older machines.
const HELD: &[(u32, u32)] = &[
    // TSC_ADJUST.
    (0x3b, 1),
    // SPEC_CTRL, PRED_CMD.
    (0x48, 1),
    (0x49, 1),
    // MTRRs.
    (0xfe, 1),
    (0x200, 16),
    (0x250, 1),
    (0x258, 2),
    (0x268, 8),
    (0x2ff, 1),
    // MISC_ENABLE.
    (0x1a0, 1),
    (CLOCKS, 2),
];

/// The clocks of KVM, which a kernel uses where CPUID shows them.
pub const CLOCKS: u32 = 0x4b56_4d00;

/// MSRs that a kernel for AMD's CPUs reads unasked: index and value. Writes change nothing.
const FIXED: &[(u32, u64)] = &[
    // Microcode revision: none is loaded here.
    (0x8b, 0),
    // SYSCFG, HWCR.
    (0xc001_0010, 0),
    (0xc001_0015, 0),
    // DE_CFG: LFENCE serializes.
    (0xc001_1029, 2),
];

/// The rules, those that a kernel needs least last.
#[must_use]
pub fn policy() -> Vec<MsrRange> {
    let fixed = FIXED.iter().map(|&(first, value)| MsrRange {
        first,
        count: 1,
        action: MsrAction::Value.raw(),
        flags: MsrFlags::IGNORE_WRITES.bits(),
        value,
        mask: 0,
    });
    let held = HELD.iter().map(|&(first, count)| MsrRange {
        first,
        count,
        action: MsrAction::Pass.raw(),
        ..MsrRange::default()
    });
    fixed.chain(held).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pv_abi::l0::Limits;

    #[test]
    fn every_l0_can_take_the_policy() {
        let rules = policy();
        assert!(rules.len() <= Limits::LEAST.msr_ranges as usize);
        for (index, rule) in rules.iter().enumerate() {
            let last = rule.last().unwrap();
            let apart = |other: &MsrRange| other.last().unwrap() < rule.first || last < other.first;
            assert!(rules[..index].iter().all(apart), "{:#x}", rule.first);
        }
    }
}
