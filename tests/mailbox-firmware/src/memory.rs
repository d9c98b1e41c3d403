//! Reaches memory, which is mapped where it lies.
//! May: unsafe. Context: boot. Input: the loader and the machine's firmware, trusted.
#![expect(unsafe_code, reason = "others' structures are raw memory")]

use core::slice;

/// Copies a structure of plain integers.
pub fn copy<T: Copy>(address: u64) -> T {
    // SAFETY: the first 4 GiB are mapped where they lie; the loader or the machine's firmware says that
    // a `T` of plain integers is there.
    unsafe { (address as *const T).read_unaligned() }
}

/// What lies there, which nobody writes but through this.
pub fn bytes(address: u64, len: u64) -> &'static mut [u8] {
    // SAFETY: as for `copy`; this program has one processor at work, and holds no two of these that
    // overlap.
    unsafe { slice::from_raw_parts_mut(address as *mut u8, len as usize) }
}
