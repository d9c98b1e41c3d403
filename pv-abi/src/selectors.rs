//! The fixed selectors and descriptor slots of the guest ABI (spec part 1.4).
//! May: nothing. Input: trusted.

/// 32-bit user code.
pub const USER32_CS: u16 = 0x23;
/// User data; SS of both guest modes.
pub const USER_DS: u16 = 0x2b;
/// 64-bit user code; CS of both guest modes.
pub const USER_CS: u16 = 0x33;
/// The pair that ERETU returns to without L1: `user_cs | user_ss << 16`, as the PVCS holds it.
pub const USER_CS_SS: u32 = USER_CS as u32 | (USER_DS as u32) << 16;

/// GDT slots 12 to 14: the thread-local-storage descriptors of LOAD_TLS.
pub const TLS_SLOTS: core::ops::Range<usize> = 12..15;
/// GDT slot 15: CPU number for `getcpu` by LSL (extension: [`crate::ext::call::SET_CPUNODE`]).
pub const CPUNODE_SLOT: usize = 15;
/// Selector of a data descriptor whose limit is the vCPU index, readable by LSL from CPL3.
pub const VCPU_INDEX: u16 = (16 << 3) | 3;
