//! Operations L1 asks of L0 and the word that asks (spec sections 3 and 4).
//! May: nothing. Input: untrusted.

use super::feature::Features;
use crate::addr::Hpa;

open_enum! {
    /// An operation. Its number is in the low [`NUMBER_BITS`] bits of the word.
    Op: u32 {
        /// Register the caller's shared page; the page's address is in the word's high bits.
        Setup = 0x001,
        /// Refresh the header: generation, features, version.
        Query = 0x002,
        /// Enable exactly these features: (arg\[0\] = bits).
        Enable = 0x003,
        /// Drop everything of this L1.
        Reset = 0x004,
        /// Create an L2 VM: (vm, flags, list of [`super::list::Region`]).
        CreateVm = 0x010,
        /// Destroy an L2 VM with its vCPUs and mappings: (vm).
        DestroyVm = 0x011,
        /// Create a vCPU; it lives as long as its VM: (vm, vcpu).
        CreateVcpu = 0x012,
        /// Map L1 memory: (vm, list of [`super::list::MapRange`]).
        Map = 0x020,
        /// Remove mappings: (vm, list of [`super::list::MapRange`]).
        Unmap = 0x021,
        /// Change the access of mapped pages: (vm, list of [`super::list::MapRange`]).
        Protect = 0x022,
        /// Make private pages shared: (vm, flags, list of [`super::list::MapRange`]).
        Share = 0x023,
        /// Make shared pages private: (vm, flags, list of [`super::list::MapRange`]).
        Unshare = 0x024,
        /// Log L2's writes from now on: (vm).
        DirtyStart = 0x028,
        /// Stop logging: (vm).
        DirtyStop = 0x029,
        /// Read and clear the log: (vm, list = bitmap, arg\[0\] = first gpa, arg\[1\] = pages).
        DirtyTake = 0x02a,
        /// Run a vCPU: (vm, vcpu), [`super::run::RunControl`].
        Run = 0x030,
        /// Make a vCPU's RUN return: (vm, vcpu).
        Kick = 0x031,
        /// Set a line of L0's I/O APIC: (vm, arg\[0\] = line, arg\[1\] = level 0 or 1).
        SetGsi = 0x032,
        /// Send a message-signalled interrupt: (vm, arg\[0\] = address, arg\[1\] = data).
        SendMsi = 0x033,
        /// Read register groups into the page: (vm, vcpu, flags = [`super::regs::Groups`]).
        GetRegs = 0x040,
        /// Load register groups from the page: (vm, vcpu, flags = [`super::regs::Groups`]).
        SetRegs = 0x041,
        /// Read the XSAVE area: (vm, vcpu, list, count = bytes).
        GetXsave = 0x042,
        /// Load the XSAVE area: (vm, vcpu, list, count = bytes, arg\[0\] = XCR0).
        SetXsave = 0x043,
        /// Read MSRs: (vm, vcpu, list of [`super::list::MsrValue`]).
        GetMsrs = 0x044,
        /// Write MSRs: (vm, vcpu, list of [`super::list::MsrValue`]).
        SetMsrs = 0x045,
        /// Read the local APIC's registers: (vm, vcpu, list, count = bytes).
        GetLapic = 0x046,
        /// Load the local APIC's registers: (vm, vcpu, list, count = bytes).
        SetLapic = 0x047,
        /// Set a vCPU's CPUID table: (vm, vcpu, list of [`super::list::CpuidLeaf`]).
        SetCpuid = 0x050,
        /// Set a VM's MSR policy: (vm, list of [`super::list::MsrRange`]).
        SetMsrPolicy = 0x051,
        /// Define a table for L1's own CPL3 code: (arg\[0\] = id, list of
        /// [`super::list::CpuidLeaf`]).
        DefineCpuidTable = 0x052,
    }
}

/// Bits of the word that hold the operation's number; the others are zero except for SETUP.
pub const NUMBER_BITS: u32 = 12;

/// The word that registers the page at `page` for the calling vCPU: `None` unless the address is
/// page-aligned, below 4 GiB and not 0.
#[must_use]
pub const fn setup_word(page: Hpa) -> Option<u32> {
    if page.0 == 0 || page.0 > u32::MAX as u64 || page.page_offset() != 0 {
        return None;
    }
    Some(page.0 as u32 | Op::Setup.raw())
}

/// The word that gives the calling vCPU's page back.
pub const TEARDOWN_WORD: u32 = Op::Setup.raw();

/// What a word asks for, as L0 reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Register this page (page-aligned, below 4 GiB, not 0).
    Setup(Hpa),
    /// Give the page back.
    Teardown,
    /// Any other operation; arguments are in the page.
    Call(Op),
}

/// Reads a word.
#[must_use]
pub const fn decode_word(word: u32) -> Word {
    let number = word & ((1 << NUMBER_BITS) - 1);
    if number == Op::Setup.raw() {
        let page = Hpa((word - number) as u64);
        return if page.0 == 0 { Word::Teardown } else { Word::Setup(page) };
    }
    Word::Call(Op::from_raw(word))
}

impl Op {
    /// The word that asks for this operation; for SETUP see [`setup_word`].
    #[must_use]
    pub const fn word(self) -> u32 {
        self.raw()
    }

    /// The feature that must be enabled for the operation to be served.
    #[must_use]
    pub const fn needs(self) -> Features {
        match self {
            Self::Setup | Self::Query | Self::Enable | Self::Reset | Self::Unknown(_) => {
                Features::empty()
            }
            Self::Share | Self::Unshare => Features::PRIVATE,
            Self::DirtyStart | Self::DirtyStop | Self::DirtyTake => Features::DIRTY_LOG,
            Self::SetGsi | Self::SendMsi | Self::GetLapic | Self::SetLapic => Features::IN_L0_APIC,
            Self::DefineCpuidTable => Features::ACTIVE_CPUID_TABLE,
            _ => Features::ASSIST,
        }
    }

    /// Whether L0 must serve the operation although its feature is withdrawn: what L1 needs to
    /// take its guests back.
    #[must_use]
    pub const fn survives_withdrawal(self) -> bool {
        matches!(
            self,
            Self::Query
                | Self::Reset
                | Self::DestroyVm
                | Self::Unmap
                | Self::Share
                | Self::Kick
                | Self::GetRegs
                | Self::GetXsave
                | Self::GetMsrs
                | Self::GetLapic
        )
    }
}

/// Flags of CREATE_VM, SHARE and UNSHARE.
pub mod flags {
    bitflags::bitflags! {
        /// Flags of CREATE_VM.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
        pub struct CreateVm: u32 {
            /// Interrupt controllers, timers, IPIs and HLT are L0's. Needs IN_L0_APIC.
            const APIC = 1 << 0;
        }

        /// Flags of SHARE and UNSHARE.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
        pub struct Convert: u32 {
            /// The new owner finds zeros; without it the content is kept.
            const ZERO = 1 << 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for &(op, name) in Op::ALL {
            assert_eq!(Op::from_raw(op.raw()), op, "{name}");
            assert!(op.raw() >> NUMBER_BITS == 0, "{name}");
            if op != Op::Setup {
                assert_eq!(decode_word(op.word()), Word::Call(op), "{name}");
            }
        }
        let page = Hpa(0x1234_5000);
        assert_eq!(setup_word(page).map(decode_word), Some(Word::Setup(page)));
        assert_eq!(decode_word(TEARDOWN_WORD), Word::Teardown);
    }

    #[test]
    fn a_page_out_of_reach_has_no_word() {
        for page in [0, 1, 0x1234_5678, 1 << 32, !0xfff] {
            assert_eq!(setup_word(Hpa(page)), None, "{page:#x}");
        }
    }

    #[test]
    fn high_bits_make_an_unknown_operation() {
        assert_eq!(decode_word(0x1000 | Op::Run.raw()), Word::Call(Op::Unknown(0x1030)));
        assert_eq!(decode_word(0), Word::Call(Op::Unknown(0)));
    }
}
