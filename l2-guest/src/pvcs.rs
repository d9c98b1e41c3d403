//! Accesses the page that the vCPU shares with the hypervisor, field by field.
//! May: nothing. Context: any. Input: written by the hypervisor, trusted.

use crate::local::local;
use core::sync::atomic::{
    AtomicU16, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed},
};
use pv_abi::pvcs::Pvcs;

/// [`Pvcs`] as it is in memory that both sides write at any time.
#[repr(C)]
pub struct Shared {
    pub event_flags: AtomicU64,
    pub cr2: AtomicU64,
    reserved0: [u64; 6],
    /// `user_cs | user_ss << 16`.
    pub user_selectors: AtomicU32,
    pub event_errcode: AtomicU16,
    pub event_vector: AtomicU16,
    pub user_gsbase: AtomicU64,
    pub eflags: AtomicU32,
    pkru: AtomicU32,
    pub rip: AtomicU64,
    pub rcx: AtomicU64,
    pub r11: AtomicU64,
    reserved1: [u64; 2],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Shared>() == size_of::<Pvcs>());
    assert!(offset_of!(Shared, user_selectors) == offset_of!(Pvcs, user_cs));
    assert!(offset_of!(Shared, event_errcode) == offset_of!(Pvcs, event_errcode));
    assert!(offset_of!(Shared, event_vector) == offset_of!(Pvcs, event_vector));
    assert!(offset_of!(Shared, user_gsbase) == offset_of!(Pvcs, user_gsbase));
    assert!(offset_of!(Shared, eflags) == offset_of!(Pvcs, eflags));
    assert!(offset_of!(Shared, rip) == offset_of!(Pvcs, rip));
    assert!(offset_of!(Shared, r11) == offset_of!(Pvcs, r11));
};

/// The page of this vCPU. Both sides access it by atomics only.
pub fn shared() -> &'static Shared {
    &local().pvcs
}

impl Shared {
    /// Leaves the event fields to the next event; returns what was in `event_vector` (EVT-3).
    pub fn take_vector(&self) -> u16 {
        self.event_vector.swap(0, AcqRel)
    }

    /// Fills the event fields for ERETU to user mode, after they were claimed.
    pub fn set_return(&self, selectors: u32, rip: u64, rflags: u64, rcx: u64, r11: u64) {
        self.user_selectors.store(selectors, Relaxed);
        self.rip.store(rip, Relaxed);
        self.eflags.store(rflags as u32, Relaxed);
        self.rcx.store(rcx, Relaxed);
        self.r11.store(r11, Relaxed);
    }
}
