//! The page that an L1 vCPU shares with L0: header and arguments (spec section 3.3).
//! May: nothing. Input: trusted by neither side.
//!
//! L0 reads it only while it serves a call of that vCPU (and
//! [`Header::active_cpuid_table`] at CPUID), once per field; it writes only while it serves a call.

use super::{
    feature::Features,
    regs::{Debug, Events, Gprs, Special},
    run::{RunControl, RunExit},
    status::Status,
};
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of [`SharedPage::io`]: the most that one I/O exit moves.
pub const IO_BYTES: usize = 1024;

/// How the last call ended. L0 writes it; L1 stores [`Status::NotServed`] into `status` first.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`Status`].
    pub status: u32,
    /// Lists: entries done, which is the index of the first that is not. Registers: see the spec.
    pub index: u32,
    /// A result; see each operation.
    pub value: u64,
    /// Changes whenever L0 withdraws a feature.
    pub generation: u32,
    /// [`Features`] that are enabled and not withdrawn.
    pub features: u32,
    /// L0's version, `major << 16 | minor`.
    pub version: u32,
    /// Written by L1, at any time: the table that answers CPUID of its CPL3 code on this vCPU; 0
    /// for none. Needs ACTIVE_CPUID_TABLE.
    pub active_cpuid_table: u32,
    /// Zero.
    pub reserved: [u32; 8],
}

layout! {
    Header: 0x40 {
        0x00 status,
        0x04 index,
        0x08 value,
        0x10 generation,
        0x14 features,
        0x18 version,
        0x1c active_cpuid_table,
        0x20 reserved,
    }
}

/// What the call is about. L1 writes it, L0 only reads it; what an operation does not name is
/// ignored.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Args {
    /// VM, chosen by L1, less than the limit.
    pub vm: u32,
    /// vCPU, chosen by L1, less than the limit.
    pub vcpu: u32,
    /// Flags; an unknown one is BAD_ARG.
    pub flags: u32,
    /// Entries of the list, or bytes of the buffer.
    pub count: u32,
    /// L1 physical address of the list or buffer.
    pub list: u64,
    /// Further arguments.
    pub arg: [u64; 5],
}

layout! {
    Args: 0x40 {
        0x00 vm,
        0x04 vcpu,
        0x08 flags,
        0x0c count,
        0x10 list,
        0x18 arg,
    }
}

/// The whole page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SharedPage {
    /// Result.
    pub header: Header,
    /// Arguments.
    pub args: Args,
    /// RUN: what L1 asks.
    pub control: RunControl,
    /// RUN: why it returned.
    pub exit: RunExit,
    /// Zero.
    pub reserved0: [u64; 24],
    /// Group GPRS.
    pub gprs: Gprs,
    /// Zero.
    pub reserved1: [u64; 14],
    /// Group SPECIAL.
    pub special: Special,
    /// Zero.
    pub reserved2: [u64; 4],
    /// Group DEBUG.
    pub debug: Debug,
    /// Zero.
    pub reserved3: [u64; 2],
    /// Group EVENTS.
    pub events: Events,
    /// Zero.
    pub reserved4: [u64; 240],
    /// Data of an I/O exit: `count * size` bytes, the first element first.
    pub io: [u8; IO_BYTES],
}

layout! {
    SharedPage: 0x1000 {
        0x000 header,
        0x040 args,
        0x080 control,
        0x0c0 exit,
        0x140 reserved0,
        0x200 gprs,
        0x290 reserved1,
        0x300 special,
        0x3e0 reserved2,
        0x400 debug,
        0x430 reserved3,
        0x440 events,
        0x480 reserved4,
        0xc00 io,
    }
}

/// Byte offsets in the page.
pub mod offset {
    #![expect(missing_docs, reason = "named after the fields")]
    use super::{Header, SharedPage, offset_of};
    pub const STATUS: usize = offset_of!(SharedPage, header.status);
    pub const INDEX: usize = offset_of!(SharedPage, header.index);
    pub const VALUE: usize = offset_of!(SharedPage, header.value);
    pub const GENERATION: usize = offset_of!(SharedPage, header.generation);
    pub const ACTIVE_CPUID_TABLE: usize = offset_of!(Header, active_cpuid_table);
    pub const ARGS: usize = offset_of!(SharedPage, args);
    pub const CONTROL: usize = offset_of!(SharedPage, control);
    pub const EXIT: usize = offset_of!(SharedPage, exit);
    pub const GPRS: usize = offset_of!(SharedPage, gprs);
    pub const SPECIAL: usize = offset_of!(SharedPage, special);
    pub const DEBUG: usize = offset_of!(SharedPage, debug);
    pub const EVENTS: usize = offset_of!(SharedPage, events);
    pub const IO: usize = offset_of!(SharedPage, io);
}

impl Header {
    /// The status, decoded.
    #[must_use]
    pub const fn status(&self) -> Status {
        Status::from_raw(self.status)
    }

    /// The features, without bits that this version does not define.
    #[must_use]
    pub const fn features(&self) -> Features {
        Features::from_bits_truncate(self.features)
    }
}
