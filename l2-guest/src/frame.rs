//! Hands out the memory that the kernel's image does not take, page by page.
//! May: unsafe, take-frame. Context: any. Input: trusted.
#![expect(unsafe_code, reason = "memory that is mapped one to one")]

use crate::boot::Boot;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use pv_abi::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;

unsafe extern "C" {
    /// The linker's: one past the image.
    safe static _end: u8;
}

static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Takes the memory between image and module, or the end of memory.
///
/// # Safety
/// Called once, before the first [`Frame::take`].
pub(crate) unsafe fn init(boot: &Boot) {
    let module = boot.module().as_ptr() as u64;
    let end = if boot.module().is_empty() { boot.memory() } else { module };
    NEXT.store((&raw const _end as u64).next_multiple_of(PAGE), Relaxed);
    END.store(end & !(PAGE - 1), Relaxed);
}

/// Takes pages of zeros that lie side by side; the address of the first.
pub(crate) fn take_range(pages: u64) -> Option<u64> {
    let end = END.load(Relaxed);
    let next = |gpa: u64| gpa.checked_add(pages * PAGE).filter(|&next| next <= end);
    let gpa = NEXT.fetch_update(Relaxed, Relaxed, next).ok()?;
    // SAFETY: memory that is mapped one to one, and that nobody else was given.
    unsafe { (gpa as *mut u8).write_bytes(0, (pages * PAGE) as usize) };
    Some(gpa)
}

/// A page of memory that belongs to who has it. There is no way back: dropping one loses it.
#[derive(Debug)]
pub struct Frame(u64);

impl Frame {
    /// A page of zeros, if there is one left.
    #[must_use]
    pub fn take() -> Option<Self> {
        take_range(1).map(Self)
    }

    /// Its guest-physical address, which is where the kernel sees it.
    #[must_use]
    pub const fn gpa(&self) -> u64 {
        self.0
    }

    /// Its content.
    #[must_use]
    pub fn bytes(&mut self) -> &mut [u8; PAGE_SIZE] {
        // SAFETY: the page is mapped one to one, and this is its only owner.
        unsafe { &mut *(self.0 as *mut [u8; PAGE_SIZE]) }
    }

    /// The frame that [`Self::gpa`] said.
    ///
    /// # Safety
    /// Nobody else has it.
    pub(crate) const unsafe fn again(gpa: u64) -> Self {
        Self(gpa)
    }
}
