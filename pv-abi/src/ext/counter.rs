//! Numbers the counters that a guest can read: by [`super::call::READ_COUNTER`], and from any
//! mode of a stock kernel's guest by [`leaf`].

use crate::cpuid::ROOST_BASE;

/// Why L1 was entered; the number is the counter's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// A page fault that a shadow entry settled.
    PageFaultFilled,
    /// A page fault of the guest's own.
    PageFaultReflected,
    /// An access to a device's memory.
    Mmio,
    /// A hypercall that has no reason of its own.
    Hypercall,
    /// A system call that could not be switched directly.
    SyscallUser,
    /// A supervisor SYSCALL that became [`super::event::SYSCALL`].
    SyscallReflected,
    /// An ERETU that could not be switched directly.
    Eretu,
    /// An ERETU that maps the page of the last fault.
    EretuPrefault,
    /// A #GP of the guest's own.
    GeneralProtection,
    /// RDMSR or WRMSR by instruction.
    RdmsrWrmsr,
    /// Another instruction that is emulated.
    Emulated,
    /// The synthetic CPUID.
    SyntheticCpuid,
    /// Any other exception.
    OtherException,
    /// INT n.
    SoftwareInterrupt,
    /// L1's timer.
    Timer,
    /// L1's console.
    ConsoleInterrupt,
    /// Any other interrupt.
    OtherInterrupt,
    /// The CPU refused to enter the guest with the state it had.
    FailedEntry,
    /// LOAD_PGTBL.
    LoadPgtbl,
    /// A flush of whole address spaces.
    Flush,
    /// A flush of one address.
    Invlpg,
    /// RDMSR or WRMSR by hypercall.
    HypercallMsr,
    /// IRQ_HALT or HLT.
    Halt,
    /// CPUID itself, where it traps.
    Cpuid,
    /// Another CPU's interrupt: a flush, an interrupt request or a guest's end waits for this one.
    Kick,
}

impl Reason {
    /// All, in the order of their numbers, each with the name that statistics use.
    pub const ALL: [(Self, &str); 25] = [
        (Self::PageFaultFilled, "page_fault_filled"),
        (Self::PageFaultReflected, "page_fault_reflected"),
        (Self::Mmio, "mmio"),
        (Self::Hypercall, "hypercall"),
        (Self::SyscallUser, "syscall_user"),
        (Self::SyscallReflected, "syscall_reflected"),
        (Self::Eretu, "eretu"),
        (Self::EretuPrefault, "eretu_prefault"),
        (Self::GeneralProtection, "general_protection"),
        (Self::RdmsrWrmsr, "rdmsr_wrmsr"),
        (Self::Emulated, "emulated"),
        (Self::SyntheticCpuid, "synthetic_cpuid"),
        (Self::OtherException, "other_exception"),
        (Self::SoftwareInterrupt, "software_interrupt"),
        (Self::Timer, "timer"),
        (Self::ConsoleInterrupt, "console_interrupt"),
        (Self::OtherInterrupt, "other_interrupt"),
        (Self::FailedEntry, "failed_entry"),
        (Self::LoadPgtbl, "load_pgtbl"),
        (Self::Flush, "flush"),
        (Self::Invlpg, "invlpg"),
        (Self::HypercallMsr, "hypercall_msr"),
        (Self::Halt, "halt"),
        (Self::Cpuid, "cpuid"),
        (Self::Kick, "kick"),
    ];

    /// The counter of this reason.
    #[must_use]
    pub const fn counter(self) -> u64 {
        self as u64
    }
}

/// First of the counters that are no exit reason.
pub const SPECIAL: u64 = 0x1000;
/// All exits.
pub const EXITS: u64 = SPECIAL;
/// Events delivered.
pub const EVENTS: u64 = SPECIAL + 1;
/// CR3 writes by L1 and switcher: two at an exit, or as many as were needed without page-table isolation;
/// one at a direct switch and at an early fault.
pub const CR3_WRITES: u64 = SPECIAL + 2;
/// Shadow entries filled.
pub const FILLS: u64 = SPECIAL + 3;
/// Flushes of this vCPU's translations.
pub const FLUSHES: u64 = SPECIAL + 4;
/// Switches between the guest's modes that never entered L1.
pub const DIRECT_SWITCHES: u64 = SPECIAL + 5;

/// Page faults that were delivered without L1.
pub const EARLY_FAULTS: u64 = SPECIAL + 6;

/// The counters that are no exit reason, with their names.
pub const OTHERS: [(u64, &str); 7] = [
    (EXITS, "exits"),
    (EVENTS, "events"),
    (CR3_WRITES, "cr3_writes"),
    (FILLS, "fills"),
    (FLUSHES, "flushes"),
    (DIRECT_SWITCHES, "direct_switches"),
    (EARLY_FAULTS, "early_faults"),
];

/// First leaf of the counters behind the forced-emulation prefix of CPUID (`ud2; "xen"`), which
/// the shim answers in any mode of its guest: EAX and EBX hold the low and the high half.
pub const LEAF: u32 = ROOST_BASE + 0x10;
/// End of these leaves.
pub const LEAF_END: u32 = ROOST_BASE + 0x100;
/// The leaf of the first counter that is no exit reason.
const LEAF_SPECIAL: u32 = LEAF + 0x80;

/// The leaf of counter `number`.
#[must_use]
pub const fn leaf(number: u64) -> u32 {
    if number < SPECIAL { LEAF + number as u32 } else { LEAF_SPECIAL + (number - SPECIAL) as u32 }
}

/// The counter of leaf `number`, if it is one of these.
#[must_use]
pub const fn of_leaf(number: u32) -> Option<u64> {
    match number {
        LEAF..LEAF_SPECIAL => Some((number - LEAF) as u64),
        LEAF_SPECIAL..LEAF_END => Some((number - LEAF_SPECIAL) as u64 + SPECIAL),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_in_the_order_of_their_numbers() {
        for (number, (reason, _)) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.counter(), number as u64);
        }
    }

    #[test]
    fn every_counter_has_a_leaf_of_its_own() {
        let reasons = Reason::ALL.map(|(reason, _)| reason.counter());
        let counters = reasons.into_iter().chain(OTHERS.map(|(number, _)| number));
        for counter in counters {
            assert_eq!(of_leaf(leaf(counter)), Some(counter));
        }
        assert_eq!([LEAF - 1, LEAF_END].map(of_leaf), [None, None]);
    }
}
