//! What RUN takes and what it leaves in the page (spec section 6).
//! May: nothing. Input: trusted by neither side.

use crate::event;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What L1 asks of RUN. L1 writes it, L0 reads each field once.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RunControl {
    /// L1's TSC at which RUN returns; [`NO_DEADLINE`] for never.
    pub deadline: u64,
    /// [`RunFlags`].
    pub flags: u32,
    /// Dirty groups: [`super::regs::Groups`] that L0 loads from the page first.
    pub write: u32,
    /// Groups that L0 must store into the page when RUN returns.
    pub read: u32,
    /// An event for L2, see [`Event`]; 0 for none.
    pub event: u32,
    /// Its error code.
    pub event_error: u32,
    /// [`ReplyFlags`].
    pub reply_flags: u32,
    /// Answer to the last exit: MMIO read, MSR read, hypercall.
    pub reply: u64,
    /// Zero.
    pub reserved: [u64; 3],
}

layout! {
    RunControl: 0x40 {
        0x00 deadline,
        0x08 flags,
        0x0c write,
        0x10 read,
        0x14 event,
        0x18 event_error,
        0x1c reply_flags,
        0x20 reply,
        0x28 reserved,
    }
}

/// Why RUN returned. L0 writes it; [`super::exit::Exit::decode`] reads it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RunExit {
    /// [`super::exit::ExitReason`].
    pub reason: u32,
    /// [`super::exit::ExitFlags`].
    pub flags: u32,
    /// Clean groups: [`super::regs::Groups`] that L0 stored into the page.
    pub valid: u32,
    /// [`VcpuState`].
    pub state: u32,
    /// Port, L2 guest-physical address, MSR or hypercall number.
    pub address: u64,
    /// Data written, or L0's code.
    pub data: u64,
    /// Bytes of one access.
    pub size: u32,
    /// Elements of a string access, else 1.
    pub count: u32,
    /// Hypercall arguments: RBX, RCX, RDX, RSI, RDI, R8.
    pub args: [u64; 6],
    /// Zero.
    pub reserved: [u64; 5],
}

layout! {
    RunExit: 0x80 {
        0x00 reason,
        0x04 flags,
        0x08 valid,
        0x0c state,
        0x10 address,
        0x18 data,
        0x20 size,
        0x24 count,
        0x28 args,
        0x58 reserved,
    }
}

/// [`RunControl::deadline`] for none.
pub const NO_DEADLINE: u64 = u64::MAX;

bitflags::bitflags! {
    /// Flags of [`RunControl`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct RunFlags: u32 {
        /// Apply groups, reply and event, then return COMPLETED without an instruction of L2.
        const COMPLETE_ONLY = 1 << 0;
        /// Return INTERRUPT_WINDOW as soon as L2 can take an interrupt.
        const WINDOW = 1 << 1;
    }

    /// Flags of [`RunControl::reply`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct ReplyFlags: u32 {
        /// The RDMSR or WRMSR was wrong: #GP(0) instead of an answer.
        const FAULT = 1 << 0;
    }

    /// [`RunExit::state`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct VcpuState: u32 {
        /// RFLAGS.IF.
        const INTERRUPTS_ENABLED = 1 << 0;
        /// An interrupt may be given with the next RUN.
        const INTERRUPT_READY = 1 << 1;
        /// The exit needs [`RunControl::reply`] or a data answer; the next RUN completes it.
        const AWAITS_REPLY = 1 << 2;
        /// L2 was in kernel mode (CPL 0) at the exit.
        const KERNEL = 1 << 3;
    }
}

/// An event for L2, encoded as the VMX and SVM manuals do: vector in bits 7:0, kind in bits 10:8,
/// bit 11 error code valid, bit 31 valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt; vector 16 to 255.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception with the error code that its vector has.
    Exception {
        /// Vector, 0 to 31, not 2.
        vector: u8,
        /// Error code, if the vector pushes one.
        error: Option<u32>,
    },
}

/// [`RunControl::event`] does not encode an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEvent(pub u32);

impl Event {
    const VALID: u32 = 1 << 31;
    const ERROR_VALID: u32 = 1 << 11;
    const KIND_SHIFT: u32 = 8;
    const NMI: u32 = 2;
    const EXCEPTION: u32 = 3;

    /// The words `event` and `event_error`.
    #[must_use]
    pub const fn encode(self) -> (u32, u32) {
        match self {
            Self::Interrupt(vector) => (Self::VALID | vector as u32, 0),
            Self::Nmi => (Self::VALID | Self::NMI << Self::KIND_SHIFT | event::NMI as u32, 0),
            Self::Exception { vector, error } => {
                let word = Self::VALID | Self::EXCEPTION << Self::KIND_SHIFT | vector as u32;
                match error {
                    Some(code) => (word | Self::ERROR_VALID, code),
                    None => (word, 0),
                }
            }
        }
    }

    /// Reads the two words; `None` when there is no event.
    ///
    /// # Errors
    /// A valid bit with anything that [`Self::encode`] does not produce.
    pub const fn decode(word: u32, error: u32) -> Result<Option<Self>, BadEvent> {
        if word == 0 {
            return Ok(None);
        }
        let vector = (word & 0xff) as u8;
        let has_error = word & Self::ERROR_VALID != 0;
        let event = match word >> Self::KIND_SHIFT & 7 {
            0 if vector >= 16 => Self::Interrupt(vector),
            Self::NMI => Self::Nmi,
            Self::EXCEPTION if vector < 32 && has_error == event::has_error_code(vector) => {
                Self::Exception { vector, error: if has_error { Some(error) } else { None } }
            }
            _ => return Err(BadEvent(word)),
        };
        // Bits that the form does not have, and an NMI posing as an exception.
        let exact = event.encode().0 == word;
        let nmi_exception = matches!(event, Self::Exception { vector: event::NMI, .. });
        if exact && !nmi_exception { Ok(Some(event)) } else { Err(BadEvent(word)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_round_trips() {
        let exceptions = (0..32).filter(|&v| v != event::NMI).map(|vector| Event::Exception {
            vector,
            error: event::has_error_code(vector).then_some(0x1234_5678),
        });
        let all = (16..=255).map(Event::Interrupt).chain(exceptions).chain([Event::Nmi]);
        for event in all {
            let (word, error) = event.encode();
            assert_eq!(Event::decode(word, error), Ok(Some(event)));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let accepted = (0..=0xffff_u32)
            .chain((0..=0xffff).map(|low| 1 << 31 | low))
            .filter(|&word| matches!(Event::decode(word, 0), Ok(Some(_))))
            .count();
        assert_eq!(accepted, 240 + 1 + 31);
        assert_eq!(Event::decode(0, 7), Ok(None));
        assert!(Event::decode(1 << 31 | 1 << 30 | 32, 0).is_err(), "an undefined bit");
    }
}
