//! Reads and writes a page that a vCPU shares with the hypervisor.
//! May: unsafe. Context: any. Input: whatever the hypervisor, or an attack, has left there.
#![expect(unsafe_code, reason = "memory that others write, too")]

use super::call::call;
use core::sync::atomic::{
    AtomicU16, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use pv_abi::{
    hypercall as nr,
    pvcs::{flags, offset},
};

/// A PVCS. Every field is accessed as an atomic by both sides.
#[derive(Clone, Copy, Debug)]
pub struct Shared(u64);

impl Shared {
    /// The page at `address`, which must be the guest's own and mapped one to one for as long as
    /// this is used.
    #[must_use]
    pub const fn at_address(address: u64) -> Self {
        Self(address)
    }

    /// Where it is, for guest and hypervisor.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0
    }

    fn at<T>(self, offset: usize) -> &'static T {
        // SAFETY: the page is this guest's own, lives for ever, and is accessed atomically.
        unsafe { &*((self.0 + offset as u64) as *const T) }
    }

    /// The 64-bit word at `offset`.
    #[must_use]
    pub fn word(self, offset: usize) -> u64 {
        self.at::<AtomicU64>(offset).load(Relaxed)
    }

    /// Stores the 64-bit word at `offset`.
    pub fn set_word(self, offset: usize, value: u64) {
        self.at::<AtomicU64>(offset).store(value, Relaxed);
    }

    /// Stores `new` at `offset` if `expected` is there.
    pub fn exchange_word(self, offset: usize, expected: u64, new: u64) {
        let word = self.at::<AtomicU64>(offset);
        // It is somebody else's value otherwise, which stays.
        let _ = word.compare_exchange(expected, new, AcqRel, Relaxed);
    }

    /// IF and IP.
    #[must_use]
    pub fn event_flags(self) -> u64 {
        self.at::<AtomicU64>(offset::EVENT_FLAGS).load(Acquire)
    }

    /// RFLAGS of what was left.
    #[must_use]
    pub fn eflags(self) -> u64 {
        self.at::<AtomicU32>(offset::EFLAGS).load(Relaxed).into()
    }

    /// Error code of the event.
    #[must_use]
    pub fn error_code(self) -> u16 {
        self.at::<AtomicU16>(offset::EVENT_ERRCODE).load(Relaxed)
    }

    /// Stores an error code.
    pub fn set_error_code(self, value: u16) {
        self.at::<AtomicU16>(offset::EVENT_ERRCODE).store(value, Relaxed);
    }

    /// Vector and guard.
    #[must_use]
    pub fn event_word(self) -> u16 {
        self.at::<AtomicU16>(offset::EVENT_VECTOR).load(Relaxed)
    }

    /// Stores vector and guard.
    pub fn set_event_word(self, value: u16) {
        self.at::<AtomicU16>(offset::EVENT_VECTOR).store(value, Relaxed);
    }

    /// `user_cs | user_ss << 16`.
    #[must_use]
    pub fn selectors(self) -> u32 {
        self.at::<AtomicU32>(offset::USER_CS).load(Relaxed)
    }

    /// Takes the event and leaves the fields to the next one.
    pub fn take_event(self) -> u16 {
        self.at::<AtomicU16>(offset::EVENT_VECTOR).swap(0, AcqRel)
    }

    /// Sets the virtual interrupt flag and lets in what is waiting.
    pub fn enable_interrupts(self) {
        self.at::<AtomicU64>(offset::EVENT_FLAGS).fetch_or(flags::IF, AcqRel);
        if self.event_flags() & flags::IP != 0 {
            call(nr::IRQ_WIN, [0; 4]);
        }
    }

    /// Clears the virtual interrupt flag, and leaves IP.
    pub fn disable_interrupts(self) {
        self.at::<AtomicU64>(offset::EVENT_FLAGS).fetch_and(!flags::IF, AcqRel);
    }

    /// Fills in where user mode goes on; `rest` is RCX and R11.
    pub fn prepare_return(self, selectors: u32, rip: u64, rflags: u64, rest: [u64; 2]) {
        self.at::<AtomicU32>(offset::USER_CS).store(selectors, Relaxed);
        self.at::<AtomicU32>(offset::EFLAGS).store(rflags as u32, Relaxed);
        self.set_word(offset::RIP, rip);
        self.set_word(offset::RCX, rest[0]);
        self.set_word(offset::R11, rest[1]);
    }
}
