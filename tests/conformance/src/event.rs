//! An event as the PVCS describes it.

use crate::{
    abi,
    tap::{Verdict, equal},
};
use pv_abi::{
    event::{INT80, has_error_code},
    pvcs::{offset, vector},
};

/// Registers that every entry from L1 sets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entered {
    pub rcx: u64,
    pub r11: u64,
    pub rflags: u64,
}

/// What L1 said about an event.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Vector and nesting guard.
    pub word: u16,
    pub error: u64,
    pub cr2: u64,
    pub rip: u64,
    pub rflags: u64,
    pub rcx: u64,
    pub r11: u64,
    /// `user_cs | user_ss << 16`.
    pub selectors: u32,
    pub user_gsbase: u64,
    /// `event_flags` while the event was handled.
    pub flags: u64,
    pub entered: Entered,
}

impl Event {
    /// No event: its vector and guard are those of none.
    pub const NONE: Self = Self {
        word: 0xffff,
        error: 0,
        cr2: 0,
        rip: 0,
        rflags: 0,
        rcx: 0,
        r11: 0,
        selectors: 0,
        user_gsbase: 0,
        flags: 0,
        entered: Entered { rcx: 0, r11: 0, rflags: 0 },
    };

    /// Copies the event out of the PVCS and leaves the fields to the next one.
    pub fn take(entered: Entered) -> Self {
        let shared = abi::pvcs();
        let event = Self::peek(entered);
        Self { word: shared.take_event(), ..event }
    }

    /// Copies the fields and changes nothing.
    pub fn peek(entered: Entered) -> Self {
        let shared = abi::pvcs();
        Self {
            word: shared.event_word(),
            error: shared.error_code().into(),
            cr2: shared.word(offset::CR2),
            rip: shared.word(offset::RIP),
            rflags: shared.eflags(),
            rcx: shared.word(offset::RCX),
            r11: shared.word(offset::R11),
            selectors: shared.selectors(),
            user_gsbase: shared.word(offset::USER_GSBASE),
            flags: shared.event_flags(),
            entered,
        }
    }

    pub const fn vector(&self) -> u8 {
        self.word as u8
    }

    /// The vector, if it is an interrupt's.
    pub const fn interrupt(&self) -> Option<u8> {
        let vector = self.vector();
        if vector >= 32 && vector != INT80 { Some(vector) } else { None }
    }

    /// Judges what kind of event it is and where it happened. The error code counts where the
    /// vector has one.
    pub fn is(&self, vector: u8, error: u64, rip: u64) -> Verdict {
        equal("vector", self.vector().into(), vector.into())?;
        equal("guard", (self.word & vector::OWNED).into(), vector::STANDARD.into())?;
        if has_error_code(vector) {
            equal("error code", self.error, error)?;
        }
        equal("RIP", self.rip, rip)
    }
}
