//! Owns physical memory: free frames, L1's heap, L1's page tables.

#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
pub mod paging;
pub mod ranges;

use pv_abi::addr::Hpa;
use ranges::Ranges;
use spin::Mutex;

/// RAM that nobody owns.
static FREE: Mutex<Ranges> = Mutex::new(Ranges::new());

/// Gives RAM to the pool.
pub fn give(range: core::ops::Range<u64>) {
    FREE.lock().add(range);
}

/// Gives a frame to the pool.
pub fn give_frame(frame: Hpa) {
    give(frame.0..frame.0 + 4096);
}

/// Takes RAM back out, whoever gave it: firmware and boot data are in use.
pub fn reserve(range: core::ops::Range<u64>) {
    FREE.lock().remove(range);
}

/// Takes `pages` contiguous frames aligned to `align` bytes. Their contents are unknown.
#[must_use]
pub fn take_pages(pages: u64, align: u64) -> Option<Hpa> {
    FREE.lock().take(pages * 4096, align).map(Hpa)
}

/// Takes the largest contiguous piece of at most `most` bytes.
#[must_use]
pub fn take_largest(most: u64, align: u64) -> Option<core::ops::Range<u64>> {
    FREE.lock().take_largest(most, align)
}

/// Free bytes.
#[must_use]
pub fn free_bytes() -> u64 {
    FREE.lock().total()
}

/// Takes one zeroed frame.
#[cfg(target_os = "none")]
#[must_use]
pub fn take_zeroed() -> Option<Hpa> {
    let frame = take_pages(1, 4096)?;
    crate::hw::physmap::zero(frame, 4096);
    Some(frame)
}
