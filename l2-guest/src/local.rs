//! Holds what is each vCPU's own: the page shared with the hypervisor, and words of the entries.
//! May: unsafe, asm. Context: any. Input: trusted.
#![expect(unsafe_code, reason = "GS leads to it")]

use crate::{entry, hypercall, pvcs::Shared};
use core::{
    arch::asm,
    mem::offset_of,
    sync::atomic::{AtomicBool, AtomicU64},
};
use pv_abi::{
    PAGE_SIZE,
    msr::{self, arch},
};

/// What is each vCPU's own. GS base is its address whenever the kernel runs (EVT-1, EVT-5).
#[repr(C, align(4096))]
pub struct Local {
    pub pvcs: Shared,
    rest: [u8; PAGE_SIZE - size_of::<Shared>()],
    /// Its own address.
    itself: AtomicU64,
    /// Words of `entry.S`.
    pub user: AtomicU64,
    pub user_rsp: AtomicU64,
    pub kernel_rsp: AtomicU64,
    pub event_rsp: AtomicU64,
    /// Somebody is in the loop of [`crate::event::enable`].
    pub letting_in: AtomicBool,
    /// What it was started for, and its argument.
    pub function: AtomicU64,
    pub argument: AtomicU64,
}

const _: () = assert!(size_of::<Local>() == 2 * PAGE_SIZE);

/// This vCPU's.
pub fn local() -> &'static Local {
    let itself: *const Local;
    // SAFETY: 1. GS base leads to a `Local` from [`Local::register`] on, which comes first. 2. It is
    // never given back, and all that changes in it is atomic.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) itself, const offset_of!(Local, itself),
            options(nostack, preserves_flags, readonly));
        &*itself
    }
}

impl Local {
    /// The first vCPU's.
    pub fn first() -> &'static Self {
        &entry::l2_guest_local
    }

    /// Makes it this vCPU's, and registers PVCS and entries.
    ///
    /// # Safety
    /// No other vCPU uses it.
    pub unsafe fn register(&'static self) {
        let address = &raw const *self as u64;
        self.itself.store(address, core::sync::atomic::Ordering::Relaxed);
        for (index, value) in [
            (arch::GS_BASE, address),
            (arch::KERNEL_GS_BASE, address),
            (msr::PVM_VCPU_STRUCT, address),
            (msr::PVM_EVENT_ENTRY, &raw const entry::l2_guest_event_entry as u64),
            (msr::PVM_RETU_RIP, &raw const entry::l2_guest_retu as u64),
            (arch::LSTAR, &raw const entry::l2_guest_syscall_entry as u64),
        ] {
            // SAFETY: page and entries are those of `entry.S`, made for it; nobody else has the page.
            unsafe { hypercall::wrmsr(index, value) }.expect("the ABI has these registers");
        }
    }
}
