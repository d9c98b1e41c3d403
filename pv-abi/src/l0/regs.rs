//! Register groups as the shared page carries them (spec section 6.3).
//! May: nothing. Input: trusted by neither side.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags::bitflags! {
    /// Register groups, in the order in which L0 loads them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Groups: u32 {
        /// [`Gprs`].
        const GPRS = 1 << 0;
        /// [`Special`].
        const SPECIAL = 1 << 1;
        /// [`Debug`].
        const DEBUG = 1 << 2;
        /// [`Events`].
        const EVENTS = 1 << 3;
    }
}

/// General registers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Gprs {
    /// By the number that instructions encode: see [`gpr`].
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

layout! {
    Gprs: 0x90 {
        0x00 gpr,
        0x80 rip,
        0x88 rflags,
    }
}

/// Indices of [`Gprs::gpr`]; R8 to R15 are 8 to 15.
pub mod gpr {
    #![expect(missing_docs, reason = "the names are the manual's")]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// A segment register with its hidden part.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Segment {
    /// Base.
    pub base: u64,
    /// Limit in bytes, the granularity applied.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// See [`attr`].
    pub attributes: u16,
}

layout! {
    Segment: 0x10 {
        0x0 base,
        0x8 limit,
        0xc selector,
        0xe attributes,
    }
}

/// Bits of [`Segment::attributes`]: the descriptor's bits 47:40, then 55:52.
pub mod attr {
    /// Mask of the type.
    pub const TYPE: u16 = 0xf;
    /// Code or data, not system.
    pub const CODE_OR_DATA: u16 = 1 << 4;
    /// Position of the privilege level (two bits).
    pub const DPL_SHIFT: u32 = 5;
    /// Present.
    pub const PRESENT: u16 = 1 << 7;
    /// Available to software.
    pub const AVAILABLE: u16 = 1 << 8;
    /// 64-bit code.
    pub const LONG: u16 = 1 << 9;
    /// 32-bit default size.
    pub const DEFAULT_BIG: u16 = 1 << 10;
    /// The descriptor's limit counted pages.
    pub const GRANULARITY: u16 = 1 << 11;
    /// A null selector was loaded: every other bit is ignored.
    pub const UNUSABLE: u16 = 1 << 15;
}

/// A descriptor table register.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Table {
    /// Base.
    pub base: u64,
    /// Limit, at most 0xffff.
    pub limit: u64,
}

layout! {
    Table: 0x10 {
        0x0 base,
        0x8 limit,
    }
}

/// Segments, tables and control registers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Special {
    /// Code segment.
    pub cs: Segment,
    /// Data segment.
    pub ds: Segment,
    /// Data segment.
    pub es: Segment,
    /// Data segment.
    pub fs: Segment,
    /// Data segment.
    pub gs: Segment,
    /// Stack segment.
    pub ss: Segment,
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register.
    pub ldt: Segment,
    /// Global descriptor table.
    pub gdt: Table,
    /// Interrupt descriptor table.
    pub idt: Table,
    /// Control register.
    pub cr0: u64,
    /// Control register.
    pub cr2: u64,
    /// Control register.
    pub cr3: u64,
    /// Control register.
    pub cr4: u64,
    /// Task priority.
    pub cr8: u64,
    /// Extended features.
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// Zero.
    pub reserved: u64,
}

layout! {
    Special: 0xe0 {
        0x00 cs,
        0x10 ds,
        0x20 es,
        0x30 fs,
        0x40 gs,
        0x50 ss,
        0x60 tr,
        0x70 ldt,
        0x80 gdt,
        0x90 idt,
        0xa0 cr0,
        0xa8 cr2,
        0xb0 cr3,
        0xb8 cr4,
        0xc0 cr8,
        0xc8 efer,
        0xd0 apic_base,
        0xd8 reserved,
    }
}

/// Debug registers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Debug {
    /// DR0 to DR3.
    pub address: [u64; 4],
    /// Status.
    pub dr6: u64,
    /// Control.
    pub dr7: u64,
}

layout! {
    Debug: 0x30 {
        0x00 address,
        0x20 dr6,
        0x28 dr7,
    }
}

/// Events that the vCPU has not taken yet, and what holds events off.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Events {
    /// An event being delivered, in the form of [`super::run::RunControl::event`]; 0 for none.
    pub injected: u32,
    /// Its error code.
    pub error: u32,
    /// [`EventFlags`].
    pub flags: u32,
    /// [`MpState`]; without IN_L0_APIC always RUNNABLE.
    pub mp_state: u32,
    /// The start-up vector that a vCPU in [`MpState::WaitForSipi`] was sent, if any.
    pub sipi_vector: u32,
    /// Zero.
    pub reserved: [u32; 11],
}

layout! {
    Events: 0x40 {
        0x00 injected,
        0x04 error,
        0x08 flags,
        0x0c mp_state,
        0x10 sipi_vector,
        0x14 reserved,
    }
}

bitflags::bitflags! {
    /// Flags of [`Events`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct EventFlags: u32 {
        /// An NMI waits.
        const NMI_PENDING = 1 << 0;
        /// NMIs are held off until IRET.
        const NMI_MASKED = 1 << 1;
        /// The instruction after STI: interrupts are held off.
        const STI_SHADOW = 1 << 2;
        /// The instruction after a load of SS: interrupts and debug traps are held off.
        const MOV_SS_SHADOW = 1 << 3;
    }
}

open_enum! {
    /// Whether the vCPU executes, where L0 has its local APIC.
    MpState: u32 {
        /// Executes.
        Runnable = 0,
        /// Waits for INIT or a start-up IPI.
        WaitForSipi = 1,
        /// In HLT.
        Halted = 2,
    }
}
