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

/// A page of memory that belongs to who has it. There is no way back: dropping one loses it.
#[derive(Debug)]
pub struct Frame(u64);

impl Frame {
    /// A page of zeros, if there is one left.
    #[must_use]
    pub fn take() -> Option<Self> {
        let gpa = NEXT.load(Relaxed);
        if gpa >= END.load(Relaxed) {
            return None;
        }
        // One vCPU; what interrupts this may take frames, too, and is done with it by now.
        if NEXT.compare_exchange(gpa, gpa + PAGE, Relaxed, Relaxed).is_err() {
            return Self::take();
        }
        let mut frame = Self(gpa);
        frame.bytes().fill(0);
        Some(frame)
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
