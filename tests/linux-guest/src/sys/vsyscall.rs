//! Calls the page that the kernel may have at a fixed address.
#![expect(unsafe_code, reason = "calls a fixed address")]

use super::trap::{self, Trap};

/// Address of `time`.
pub const TIME: u64 = 0xffff_ffff_ff60_0400;

/// Seconds since 1970.
///
/// # Errors
/// The call faulted.
pub fn time() -> Result<u64, Trap> {
    // SAFETY: what the kernel has there takes a pointer that may be null.
    unsafe { trap::call(TIME, [0, 0]) }
}
