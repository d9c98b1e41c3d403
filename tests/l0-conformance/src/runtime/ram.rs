//! Hands out RAM outside Rust's memory and accesses it: shared pages, lists, L2's memory.
//! May: unsafe. Context: any.
//!
//! What L0 or L2 may read and write lies here and nowhere else, so no Rust reference ever points to
//! memory that changes by itself. Every access is checked against the bounds of the arena.
#![expect(unsafe_code, reason = "memory by address")]

use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

static START: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Takes a range of RAM that nobody else uses, below 4 GiB, as the arena. Once, at start.
pub fn init(range: Range<u64>) {
    START.store(range.start, SeqCst);
    NEXT.store(range.start, SeqCst);
    END.store(range.end, SeqCst);
}

/// Zeroed pages, one after the other, at a multiple of `align` (a power of two, at least a page).
///
/// # Panics
/// The arena is used up.
pub fn pages_at(count: u64, align: u64) -> u64 {
    let start = NEXT.load(SeqCst).next_multiple_of(align);
    let end = start + count * PAGE;
    assert!(end <= END.load(SeqCst), "too little memory: give L1 at least 128 MiB");
    NEXT.store(end, SeqCst);
    fill(start, count * PAGE, 0);
    start
}

/// Zeroed pages, one after the other.
pub fn pages(count: u64) -> u64 {
    pages_at(count, PAGE)
}

/// Where the arena's unused part starts; `release` goes back there.
pub fn mark() -> u64 {
    NEXT.load(SeqCst)
}

/// Gives back all pages handed out since `mark`.
pub fn release(mark: u64) {
    NEXT.store(mark, SeqCst);
}

/// The address as a pointer.
fn at(address: u64, bytes: u64) -> *mut u8 {
    let inside = address >= START.load(SeqCst)
        && address.checked_add(bytes).is_some_and(|end| end <= END.load(SeqCst));
    assert!(inside, "{address:#x} is outside the arena");
    address as *mut u8
}

/// Reads 8 bytes, at a multiple of 8.
pub fn load(address: u64) -> u64 {
    assert!(address.is_multiple_of(8), "misaligned");
    // SAFETY: mapped RAM of the arena (checked), aligned, never borrowed by Rust code.
    unsafe { at(address, 8).cast::<u64>().read_volatile() }
}

/// Writes 8 bytes, at a multiple of 8.
pub fn store(address: u64, value: u64) {
    assert!(address.is_multiple_of(8), "misaligned");
    // SAFETY: as in `load`.
    unsafe { at(address, 8).cast::<u64>().write_volatile(value) }
}

/// Writes 4 bytes, at a multiple of 4.
pub fn store32(address: u64, value: u32) {
    assert!(address.is_multiple_of(4), "misaligned");
    // SAFETY: as in `load`.
    unsafe { at(address, 4).cast::<u32>().write_volatile(value) }
}

/// Reads 4 bytes, at a multiple of 4.
pub fn load32(address: u64) -> u32 {
    assert!(address.is_multiple_of(4), "misaligned");
    // SAFETY: as in `load`.
    unsafe { at(address, 4).cast::<u32>().read_volatile() }
}

/// Reads a value.
pub fn read<T: FromBytes>(address: u64) -> T {
    let from = at(address, size_of::<T>() as u64);
    // SAFETY: RAM of the arena (checked); any bytes are a `T`; the alignment does not matter.
    unsafe { from.cast::<T>().read_unaligned() }
}

/// Writes a value.
pub fn write<T: IntoBytes + Immutable>(address: u64, value: &T) {
    write_bytes(address, value.as_bytes());
}

/// Writes bytes.
pub fn write_bytes(address: u64, bytes: &[u8]) {
    let to = at(address, bytes.len() as u64);
    // SAFETY: RAM of the arena (checked), which no slice overlaps.
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

/// Sets every byte.
pub fn fill(address: u64, bytes: u64, value: u8) {
    let to = at(address, bytes);
    // SAFETY: RAM of the arena (checked).
    unsafe { to.write_bytes(value, bytes as usize) };
}

/// A sum of `bytes` (a multiple of 8) that a change of any word changes.
pub fn checksum(address: u64, bytes: u64) -> u64 {
    (0..bytes / 8).fold(0, |sum: u64, word| {
        sum.rotate_left(5)
            .wrapping_add(load(address + word * 8))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

/// A checksum of the program's own constants and code.
pub fn own_checksum() -> u64 {
    let range = super::boot::constants();
    (range.start..range.end).step_by(8).fold(0, |sum: u64, address| {
        // SAFETY: code and constants of the image, which nothing writes.
        let word = unsafe { (address as *const u64).read_volatile() };
        sum.rotate_left(5).wrapping_add(word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

/// Orders this CPU's accesses: those before are visible to all before those after.
pub fn fence() {
    core::sync::atomic::fence(SeqCst);
}
