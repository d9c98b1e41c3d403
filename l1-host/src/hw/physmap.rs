//! Reaches physical memory through L1's direct map.
//! May: unsafe. Input: trusted addresses.
#![expect(unsafe_code, reason = "physical memory is raw memory")]

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use pv_abi::addr::Hpa;

/// Where the direct map starts: PML4 slot 258.
pub const DIRECT_MAP: u64 = 0xffff_8100_0000_0000;
/// Bytes the slots of the direct map (258 to 262) can hold.
pub const DIRECT_MAP_SIZE: u64 = 5 << 39;
/// Where the stacks of all CPUs but the first lie: PML4 slot 263.
pub const STACKS: u64 = 0xffff_8380_0000_0000;

/// A frame as 64-bit words. Frames are shared with guests and hardware walkers, so L1 has no plain
/// reference into any of them.
pub type Frame = [AtomicU64; 512];

/// The frame at `hpa`.
///
/// The caller names RAM that was handed out by [`crate::memory`] (or belongs to a boot module) and
/// is mapped in the direct map; L1 never unmaps RAM, so the reference stays valid. That the *owner*
/// of the frame may have changed is the caller's concern.
#[inline]
#[must_use]
pub fn frame(hpa: Hpa) -> &'static Frame {
    debug_assert!(hpa.page_offset() == 0 && hpa.0 < DIRECT_MAP_SIZE);
    // SAFETY: 1. The address is in the direct map, which covers all RAM, writable, for ever.
    // 2. Atomics make concurrent access by guests and CPUs defined; no `&mut` to RAM exists
    // except inside the heap, whose frames nobody else is given.
    unsafe { &*((DIRECT_MAP + hpa.0) as *const Frame) }
}

/// The bytes of the frame at `hpa`; see [`frame`].
#[must_use]
pub fn frame_bytes(hpa: Hpa) -> &'static [AtomicU8; 4096] {
    debug_assert!(hpa.page_offset() == 0 && hpa.0 < DIRECT_MAP_SIZE);
    // SAFETY: as for `frame`.
    unsafe { &*((DIRECT_MAP + hpa.0) as *const [AtomicU8; 4096]) }
}

/// Fills `len` bytes from `hpa` on with zero. Both are multiples of the page size.
///
/// Plain stores in a row: an emulator, where string instructions are slow, does them seven times
/// as fast, and hardware hardly cares.
pub fn zero(hpa: Hpa, len: u64) {
    for page in (0..len).step_by(4096) {
        for word in frame(hpa.offset(page)) {
            word.store(0, Relaxed);
        }
    }
}

/// Copies `bytes` to `hpa`, RAM that the caller owns and shares with nobody yet.
pub fn write(hpa: Hpa, bytes: &[u8]) {
    // SAFETY: see `zero`; the source is a Rust slice, so the two cannot overlap.
    unsafe {
        core::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            (DIRECT_MAP + hpa.0) as *mut u8,
            bytes.len(),
        );
    }
}

/// RAM that nobody writes any more: boot modules, firmware tables.
#[must_use]
pub fn read_only(hpa: Hpa, len: u64) -> &'static [u8] {
    // SAFETY: boot data is kept out of the allocator until [`crate::boot`] is done with it, and
    // neither firmware nor devices write it after start-up.
    unsafe { core::slice::from_raw_parts((DIRECT_MAP + hpa.0) as *const u8, len as usize) }
}

/// A type that consists of atomics only, so that it may lie in RAM that others use as well.
///
/// # Safety
/// Every byte of the type is an atomic or padding, any bit pattern is valid, and its alignment
/// is at most that of a page.
pub unsafe trait Shared {}

// SAFETY: arrays of `AtomicU64`.
unsafe impl Shared for shadow_mmu::env::Table {}
// SAFETY: arrays of `AtomicU64`.
unsafe impl Shared for switcher::tables::GdtPage {}
// SAFETY: arrays of `AtomicU64`.
unsafe impl Shared for switcher::tables::IdtPage {}
// SAFETY: `AtomicU64` and `AtomicU32`, and one reserved word that nobody reads.
unsafe impl Shared for switcher::CpuBlock {}

/// The `T` in the frame at `hpa`; see [`frame`].
#[inline]
#[must_use]
pub fn table<T: Shared>(hpa: Hpa) -> &'static T {
    const { assert!(size_of::<T>() <= 4096 && align_of::<T>() <= 4096) }
    debug_assert!(hpa.page_offset() == 0 && hpa.0 < DIRECT_MAP_SIZE);
    // SAFETY: as for `frame`; `Shared` says that any contents are a `T`.
    unsafe { &*((DIRECT_MAP + hpa.0) as *const T) }
}

/// Copies out of a frame: what is read is whatever is there at that instant, of each byte.
pub fn copy_from_frame(hpa: Hpa, offset: usize, out: &mut [u8]) {
    let (head, words) = split(offset, out.len());
    let bytes = frame_bytes(hpa);
    let (first, rest) = out.split_at_mut(head);
    let (middle, last) = rest.split_at_mut(8 * words);
    let copy = |out: &mut [u8], at: usize| {
        for (to, from) in out.iter_mut().zip(&bytes[at..]) {
            *to = from.load(Relaxed);
        }
    };
    copy(first, offset);
    for (to, from) in middle.as_chunks_mut().0.iter_mut().zip(&frame(hpa)[(offset + head) / 8..]) {
        *to = from.load(Relaxed).to_le_bytes();
    }
    copy(last, offset + head + 8 * words);
}

/// Copies into a frame.
pub fn copy_to_frame(hpa: Hpa, offset: usize, data: &[u8]) {
    let (head, words) = split(offset, data.len());
    let bytes = frame_bytes(hpa);
    let (first, rest) = data.split_at(head);
    let (middle, last) = rest.split_at(8 * words);
    let copy = |data: &[u8], at: usize| {
        for (from, to) in data.iter().zip(&bytes[at..]) {
            to.store(*from, Relaxed);
        }
    };
    copy(first, offset);
    for (from, to) in middle.as_chunks().0.iter().zip(&frame(hpa)[(offset + head) / 8..]) {
        to.store(u64::from_le_bytes(*from), Relaxed);
    }
    copy(last, offset + head + 8 * words);
}

/// Of `len` bytes at `offset`: bytes before the first whole word, whole words. A byte at a time takes an
/// instruction for each, and most of what is copied is long.
const fn split(offset: usize, len: usize) -> (usize, usize) {
    let to_word = offset.wrapping_neg() % 8;
    let head = if to_word < len { to_word } else { len };
    (head, (len - head) / 8)
}
