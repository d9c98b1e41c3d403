//! L1's heap: boot-time objects, one per VM and vCPU, and what
//! grows with a guest's use: the map of shadowed frames, and local descriptor tables.
//! May: unsafe. Context: boot.
#![expect(unsafe_code, reason = "a global allocator is made of raw memory")]

use crate::hw::physmap::DIRECT_MAP;
use pv_abi::addr::Hpa;
use talc::{TalcLock, source::Manual};

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Manual> = TalcLock::new(Manual);

/// Adds `len` bytes of RAM at `start` to the heap.
pub fn add(start: Hpa, len: u64) {
    // SAFETY: the caller took this RAM for the heap; the direct map covers it, writable.
    let claimed = unsafe { HEAP.lock().claim((DIRECT_MAP + start.0) as *mut u8, len as usize) };
    assert!(claimed.is_some(), "a heap region of {len} bytes is too small");
}
