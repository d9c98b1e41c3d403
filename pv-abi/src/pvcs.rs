//! The PVCS: the page a vCPU shares with L1 (PVM generation C1, spec part 1.3).
//! May: nothing. Input: guest-controlled.
//!
//! One page-aligned guest page per vCPU; the first 128 bytes are defined. Both sides write it at
//! any time, so neither side may read a field twice and expect the same value.

use core::mem::offset_of;

/// Layout of the defined part of the page. Used for offsets and for whole copies; shared memory
/// itself is only ever accessed field by field with volatile or atomic operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pvcs {
    /// See [`flags`]. The virtual interrupt flag and the pending hint.
    pub event_flags: u64,
    /// Faulting address of the last #PF delivered.
    pub cr2: u64,
    /// Zero.
    pub reserved0: [u64; 6],
    /// User CS selector: written on events from user mode, read by ERETU.
    pub user_cs: u16,
    /// User SS selector.
    pub user_ss: u16,
    /// Error code of the last event, where its vector has one.
    pub event_errcode: u16,
    /// See [`vector`]: vector of the last event, with the nesting guard in the high byte.
    pub event_vector: u16,
    /// GS base of user mode.
    pub user_gsbase: u64,
    /// RFLAGS of the interrupted context, with the *virtual* interrupt flag.
    pub eflags: u32,
    /// Zero: protection keys are not offered.
    pub pkru: u32,
    /// RIP of the interrupted context.
    pub rip: u64,
    /// RCX of the interrupted context.
    pub rcx: u64,
    /// R11 of the interrupted context.
    pub r11: u64,
    /// Zero.
    pub reserved1: [u64; 2],
}

layout! {
    Pvcs: 0x80 {
        0x00 event_flags,
        0x08 cr2,
        0x10 reserved0,
        0x40 user_cs,
        0x42 user_ss,
        0x44 event_errcode,
        0x46 event_vector,
        0x48 user_gsbase,
        0x50 eflags,
        0x54 pkru,
        0x58 rip,
        0x60 rcx,
        0x68 r11,
        0x70 reserved1,
    }
}

/// Bits of [`Pvcs::event_flags`].
pub mod flags {
    /// An interrupt is waiting: whoever sets IF calls IRQ_WIN.
    pub const IP: u64 = 1 << 8;
    /// Virtual interrupt flag of supervisor mode. User mode always counts as enabled.
    pub const IF: u64 = 1 << 9;
}

/// Bits of [`Pvcs::event_vector`].
pub mod vector {
    /// An event, or a return being prepared, owns the event fields.
    pub const STANDARD: u16 = 1 << 8;
    /// An NMI is recorded (or being delivered).
    pub const NMI: u16 = 1 << 9;
    /// A machine check is recorded (or being delivered).
    pub const MCE: u16 = 1 << 10;
    /// Everything that forbids delivery of another supervisor-mode event.
    pub const OWNED: u16 = 0xff00;
}

/// Byte offsets of the fields, for assembly.
pub mod offset {
    #![expect(missing_docs, reason = "named after the fields")]
    use super::{Pvcs, offset_of};
    pub const EVENT_FLAGS: usize = offset_of!(Pvcs, event_flags);
    pub const CR2: usize = offset_of!(Pvcs, cr2);
    pub const USER_CS: usize = offset_of!(Pvcs, user_cs);
    pub const EVENT_ERRCODE: usize = offset_of!(Pvcs, event_errcode);
    pub const EVENT_VECTOR: usize = offset_of!(Pvcs, event_vector);
    pub const USER_GSBASE: usize = offset_of!(Pvcs, user_gsbase);
    pub const EFLAGS: usize = offset_of!(Pvcs, eflags);
    pub const RIP: usize = offset_of!(Pvcs, rip);
    pub const RCX: usize = offset_of!(Pvcs, rcx);
    pub const R11: usize = offset_of!(Pvcs, r11);
}
