//! L1's view of a PVCS page.
//! May: guest-memory. Context: irq-off. Input: guest-controlled; each word is read once.

use crate::{
    abi_flaw::{Flaw, planted},
    hw::physmap::Frame,
};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use pv_abi::{
    addr::Hpa,
    pvcs::{flags, offset, vector},
};

/// A registered PVCS.
#[derive(Clone, Copy, Debug)]
pub struct PvcsPage {
    /// The host frame, pinned by being part of the VM's memory for good.
    pub hpa: Hpa,
    page: &'static Frame,
}

/// Selectors, error code and vector share a word.
#[derive(Clone, Copy, Debug)]
pub struct EventWord(u64);

impl EventWord {
    /// Builds the word.
    pub const fn new(selectors: u32, error: u16, vector: u16) -> Self {
        Self(selectors as u64 | (error as u64) << 32 | (vector as u64) << 48)
    }

    /// `user_cs | user_ss << 16`.
    pub const fn selectors(self) -> u32 {
        self.0 as u32
    }

    /// The guard in the vector's high byte is set.
    pub const fn is_owned(self) -> bool {
        (self.0 >> 48) as u16 & vector::OWNED != 0
    }
}

/// A context as the PVCS holds it.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    pub eflags: u64,
    pub rip: u64,
    pub rcx: u64,
    pub r11: u64,
}

impl PvcsPage {
    /// The PVCS in host frame `hpa`.
    pub const fn new(hpa: Hpa, page: &'static Frame) -> Self {
        Self { hpa, page }
    }

    const fn word(&self, offset: usize) -> &AtomicU64 {
        &self.page[offset / 8]
    }

    /// The virtual interrupt flag.
    #[inline]
    pub fn interrupts_enabled(&self) -> bool {
        self.word(offset::EVENT_FLAGS).load(Acquire) & flags::IF != 0
    }

    /// Clears IF; returns what it was, as RFLAGS has it.
    #[inline]
    pub fn take_if(&self) -> u64 {
        let clear = if planted(Flaw::IfKept) { 0 } else { flags::IF };
        self.word(offset::EVENT_FLAGS).fetch_and(!clear, AcqRel) & flags::IF
    }

    /// Sets and clears bits of `event_flags`.
    pub fn update_flags(&self, set: u64, clear: u64) {
        let word = self.word(offset::EVENT_FLAGS);
        if clear != 0 {
            word.fetch_and(!clear, AcqRel);
        }
        if set != 0 {
            word.fetch_or(set, AcqRel);
        }
    }

    /// Reads the event word.
    #[inline]
    pub fn event(&self) -> EventWord {
        EventWord(self.word(offset::USER_CS).load(Relaxed))
    }

    /// Writes the event word.
    #[inline]
    pub fn set_event(&self, word: EventWord) {
        self.word(offset::USER_CS).store(word.0, Relaxed);
    }

    /// Writes the selectors alone.
    pub fn set_selectors(&self, selectors: u32) {
        let word = self.word(offset::USER_CS);
        let rest = word.load(Relaxed) & !0xffff_ffff;
        word.store(rest | u64::from(selectors), Relaxed);
    }

    /// Writes the interrupted context.
    #[inline]
    pub fn save(&self, saved: &Saved) {
        // The word's upper half is pkru, always 0.
        self.word(offset::EFLAGS).store(saved.eflags & 0xffff_ffff, Relaxed);
        self.word(offset::RIP).store(saved.rip, Relaxed);
        self.word(offset::RCX).store(saved.rcx, Relaxed);
        self.word(offset::R11).store(saved.r11, Relaxed);
        if planted(Flaw::ReservedWritten) {
            self.word(offset::R11 + 8).store(saved.r11, Relaxed);
        }
    }

    /// Reads the context to return to.
    pub fn restore(&self) -> Saved {
        Saved {
            eflags: self.word(offset::EFLAGS).load(Relaxed) & 0xffff_ffff,
            rip: self.word(offset::RIP).load(Relaxed),
            rcx: self.word(offset::RCX).load(Relaxed),
            r11: self.word(offset::R11).load(Relaxed),
        }
    }

    /// The user GS base.
    pub fn user_gsbase(&self) -> u64 {
        self.word(offset::USER_GSBASE).load(Relaxed)
    }

    /// Writes the user GS base.
    #[inline]
    pub fn set_user_gsbase(&self, base: u64) {
        self.word(offset::USER_GSBASE).store(base, Relaxed);
    }

    /// The address of the last page fault delivered.
    pub fn cr2(&self) -> u64 {
        self.word(offset::CR2).load(Relaxed)
    }

    /// Writes it.
    #[inline]
    pub fn set_cr2(&self, address: u64) {
        self.word(offset::CR2).store(address, Relaxed);
    }
}
