//! Loads data segment registers.
//! May: unsafe. Context: shim.
#![expect(unsafe_code, reason = "segment registers have no safe interface")]

use core::arch::asm;
use pv_abi::selectors::USER_DS;

/// A segment register that no code here depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// DS.
    Ds,
    /// ES.
    Es,
    /// FS; its base becomes 0.
    Fs,
}

/// Loads the flat data segment.
pub fn load_flat(segment: Segment) {
    let selector = USER_DS;
    match segment {
        // SAFETY: in 64-bit mode neither base nor limit of DS and ES counts.
        Segment::Ds => unsafe { asm!("mov ds, {:x}", in(reg) selector, options(nostack)) },
        // SAFETY: likewise.
        Segment::Es => unsafe { asm!("mov es, {:x}", in(reg) selector, options(nostack)) },
        // SAFETY: nothing here is addressed by FS.
        Segment::Fs => unsafe { asm!("mov fs, {:x}", in(reg) selector, options(nostack)) },
    }
}
