//! What L0 does when a guest that it runs accesses an MSR, so that L1 is never asked.
//! May: nothing.
//!
//! L0 holds the architectural ones without a rule; what has no rule is #GP, which kernels expect of
//! a virtual machine.

use alloc::vec::Vec;
use pv_abi::{
    cpuid::{KVM_BASE, KVM_FEATURE_CLOCKSOURCE_STABLE, KVM_FEATURE_CLOCKSOURCE2},
    l0::list::{MsrAction, MsrFlags, MsrRange},
};

/// MSRs that L0 may hold: first, how many, and what CPUID says of them.
const HELD: &[(u32, u32, Option<Hidden>)] = &[
    // TSC_ADJUST.
    (0x3b, 1, Some(Hidden { leaf: 7, register: EBX, bits: 1 << 1 })),
    // SPEC_CTRL: IBRS, STIBP, SSBD, by Intel and by AMD.
    (0x48, 1, Some(Hidden { leaf: 7, register: EDX, bits: 1 << 26 | 1 << 27 | 1 << 31 })),
    // PRED_CMD.
    (0x49, 1, Some(Hidden { leaf: 0x8000_0008, register: EBX, bits: 1 << 12 })),
    // ARCH_CAPABILITIES.
    (0x10a, 1, Some(Hidden { leaf: 7, register: EDX, bits: 1 << 29 })),
    // MTRRs.
    (0xfe, 1, Some(Hidden { leaf: 1, register: EDX, bits: 1 << 12 })),
    (0x200, 16, None),
    (0x250, 1, None),
    (0x258, 2, None),
    (0x268, 8, None),
    (0x2ff, 1, None),
    // MISC_ENABLE.
    (0x1a0, 1, None),
    // The clocks of KVM.
    (
        0x4b56_4d00,
        2,
        Some(Hidden {
            leaf: KVM_BASE + 1,
            register: EAX,
            bits: KVM_FEATURE_CLOCKSOURCE2 | KVM_FEATURE_CLOCKSOURCE_STABLE,
        }),
    ),
];

const EAX: usize = 0;
const EBX: usize = 1;
const EDX: usize = 3;

/// A feature in CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The leaf, whatever the subleaf.
    pub leaf: u32,
    /// EAX, EBX, ECX, EDX: 0 to 3.
    pub register: usize,
    /// Bits of the register.
    pub bits: u32,
}

/// What must be hidden because L0 does not take rule `first` of [`policy`].
#[must_use]
pub fn hidden_without(first: u32) -> Option<Hidden> {
    HELD.iter().find(|held| held.0 == first)?.2
}

/// MSRs that a kernel for AMD's CPUs reads unasked: first, how many, and their value. Writes change
/// nothing.
const FIXED: &[(u32, u32, u64)] = &[
    // Microcode revision: none is loaded here.
    (0x8b, 1, 0),
    // SYSCFG to HWCR.
    (0xc001_0010, 6, 0),
    // Interrupts that the chip set takes away when the CPU sleeps: none.
    (0xc001_0055, 1, 0),
    // DE_CFG: LFENCE serializes.
    (0xc001_1029, 1, 2),
];

/// The rules, those that a kernel needs least last.
#[must_use]
pub fn policy() -> Vec<MsrRange> {
    let fixed = FIXED.iter().map(|&(first, count, value)| MsrRange {
        first,
        count,
        action: MsrAction::Value.raw(),
        flags: MsrFlags::IGNORE_WRITES.bits(),
        value,
        mask: 0,
    });
    let held = HELD.iter().map(|&(first, count, _)| MsrRange {
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
    fn what_cpuid_says_goes_with_the_msr() {
        assert_eq!(hidden_without(0x10a).unwrap().bits, 1 << 29);
        assert_eq!(hidden_without(0x200), None);
        assert_eq!(hidden_without(0x8b), None, "that one is L1's own");
    }

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
