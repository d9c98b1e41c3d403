//! Model-specific registers of the guest ABI (PVM generation C1, spec part 1.2).
//! May: nothing. Input: guest-controlled.

/// Legal upper-half address range; see [`linear_address_range`].
pub const PVM_LINEAR_ADDRESS_RANGE: u32 = 0x4b56_4df0;
/// Guest-physical address of this vCPU's [`crate::pvcs::Pvcs`]; 0 means none.
pub const PVM_VCPU_STRUCT: u32 = 0x4b56_4df1;
/// Event entry: +0 for events from user mode, +512 for events from supervisor mode.
pub const PVM_EVENT_ENTRY: u32 = 0x4b56_4df4;
/// Address of the SYSCALL instruction that returns to user mode (ERETU).
pub const PVM_RETU_RIP: u32 = 0x4b56_4df5;
/// First and last index of the window PVM reserves.
pub const PVM_WINDOW: core::ops::RangeInclusive<u32> = 0x4b56_4df0..=0x4b56_4df7;

/// Distance from the event entry for user mode to the one for supervisor mode, bytes.
pub const EVENT_ENTRY_SUPERVISOR: u64 = 512;

/// kvmclock: wall clock page (guest-physical address).
pub const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// kvmclock: per-vCPU time page (guest-physical address, bit 0 enables).
pub const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
/// Steal time: per-vCPU page (guest-physical address, a multiple of 64; bit 0 enables, bits 1 to 5 are
/// reserved). See [`steal`].
pub const KVM_STEAL_TIME: u32 = 0x4b56_4d03;

/// What L1 writes where [`KVM_STEAL_TIME`] says: offsets in bytes.
pub mod steal {
    /// Nanoseconds for which the vCPU was ready and did not run (u64).
    pub const TIME: usize = 0;
    /// Odd while the rest changes (u32).
    pub const VERSION: usize = 8;
    /// Bytes in all; the rest is 0.
    pub const SIZE: usize = 64;
    /// Bits of the MSR that must be 0.
    pub const RESERVED: u64 = 0x3e;
}

/// Architectural registers L1 answers for a guest.
pub mod arch {
    #![expect(missing_docs, reason = "the names are the manual's")]
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const MISC_FEATURES_ENABLES: u32 = 0x140;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// The x2APIC registers of a virtual local APIC (SDM vol. 3, 11.12.1).
pub mod x2apic {
    #![expect(missing_docs, reason = "the names are the manual's")]
    pub const FIRST: u32 = 0x800;
    pub const LAST: u32 = 0x8ff;
    pub const ID: u32 = 0x802;
    pub const VERSION: u32 = 0x803;
    pub const TPR: u32 = 0x808;
    pub const PPR: u32 = 0x80a;
    pub const EOI: u32 = 0x80b;
    pub const LDR: u32 = 0x80d;
    pub const SVR: u32 = 0x80f;
    pub const ISR0: u32 = 0x810;
    pub const TMR0: u32 = 0x818;
    pub const IRR0: u32 = 0x820;
    pub const ESR: u32 = 0x828;
    pub const ICR: u32 = 0x830;
    pub const LVT_TIMER: u32 = 0x832;
    pub const LVT_THERMAL: u32 = 0x833;
    pub const LVT_PERF: u32 = 0x834;
    pub const LVT_LINT0: u32 = 0x835;
    pub const LVT_LINT1: u32 = 0x836;
    pub const LVT_ERROR: u32 = 0x837;
    pub const TIMER_INITIAL: u32 = 0x838;
    pub const TIMER_CURRENT: u32 = 0x839;
    pub const TIMER_DIVIDE: u32 = 0x83e;
    pub const SELF_IPI: u32 = 0x83f;
}

/// Packs the [`PVM_LINEAR_ADDRESS_RANGE`] value for PML4 slots `start..end` of the upper half
/// (four-level paging; the five-level part is the empty range).
#[must_use]
pub const fn linear_address_range(start: u16, end: u16) -> u64 {
    const EMPTY: u64 = 0x01ff_01ff;
    (EMPTY << 32) | LAR_FIXED | (start as u64 & 0x1ff) | ((end as u64 & 0x1ff) << 16)
}

/// Bits of [`PVM_LINEAR_ADDRESS_RANGE`] that must be 1.
const LAR_FIXED: u64 = 0xff00_ff00_ff00_ff00;

/// PML4 slots C1 guests may use by default (`start..end`): where KVM-PVM's fixed range lies, so
/// that images move between hypervisors.
pub const DEFAULT_UPPER_SLOTS: core::ops::Range<u16> = 472..504;

/// Decodes a [`PVM_LINEAR_ADDRESS_RANGE`] value into PML4 slots `start..end`, if it is well formed
/// and its five-level part is empty, as four-level paging demands.
#[must_use]
pub const fn upper_slots(value: u64) -> Option<(u16, u16)> {
    if value & LAR_FIXED != LAR_FIXED {
        return None;
    }
    let (start, end) = ((value & 0x1ff) as u16, ((value >> 16) & 0x1ff) as u16);
    let ordered = start <= end && start >= 256 && end >= 256;
    let five_level_empty = value >> 32 & 0x1ff == value >> 48 & 0x1ff;
    if ordered && five_level_empty { Some((start, end)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_range_round_trips() {
        let range = linear_address_range(472, 504);
        assert_eq!(upper_slots(range), Some((472, 504)));
        assert_eq!(range, 0xffff_ffff_fff8_ffd8);
    }

    #[test]
    fn malformed_ranges_are_refused() {
        assert_eq!(upper_slots(0), None, "fixed bits clear");
        assert_eq!(upper_slots(linear_address_range(504, 472)), None, "reversed");
        let range = linear_address_range(472, 504);
        assert_eq!(upper_slots(range & !(1 << 32)), None, "five-level slots");
        assert_eq!(upper_slots(range & !(1 << 32 | 1 << 48)), Some((472, 504)), "none of them");
    }
}
