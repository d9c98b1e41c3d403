//! Guest memory by guest-physical address, and what the shim shows of itself there.
//! May: unsafe, guest-memory. Context: shim. Input: guest-controlled addresses.
#![expect(unsafe_code, reason = "the memory map of the VM window")]

use crate::guest_memory::Memory;
use core::sync::atomic::{
    AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use pv_abi::ext::window;

/// First byte past the guest's memory, the window's frames included.
static END: AtomicU64 = AtomicU64::new(0);

/// Told by L1 at start.
pub fn set_end(frames: u64) {
    END.store(frames << 12, Relaxed);
}

/// True if `len` bytes at `gpa` are guest memory.
#[inline]
#[must_use]
pub fn contains(gpa: u64, len: u64) -> bool {
    gpa.checked_add(len).is_some_and(|end| end <= END.load(Relaxed))
}

/// Window address of `gpa`.
#[must_use]
pub const fn address(gpa: u64) -> u64 {
    window::MEMORY + gpa
}

fn at<T>(gpa: u64) -> Option<&'static T> {
    let fits = contains(gpa, size_of::<T>() as u64) && gpa.is_multiple_of(align_of::<T>() as u64);
    // SAFETY: L1 maps all guest memory at MEMORY, readable and writable, for ever. The gap between
    // RAM and the window's own frames is never named by the kernel without the whole VM being
    // wrong, and then the access faults and the VM ends. `T` is an atomic: callers below.
    fits.then(|| unsafe { &*(address(gpa) as *const T) })
}

/// The 64-bit word at `gpa`, if that is aligned guest memory.
#[inline]
#[must_use]
pub fn word(gpa: u64) -> Option<&'static AtomicU64> {
    at(gpa)
}

/// The 32-bit word at `gpa`.
#[must_use]
pub fn word32(gpa: u64) -> Option<&'static AtomicU32> {
    at(gpa)
}

/// The 16-bit word at `gpa`.
fn word16(gpa: u64) -> Option<&'static AtomicU16> {
    at(gpa)
}

/// The byte at `gpa`.
#[must_use]
pub fn byte(gpa: u64) -> Option<&'static AtomicU8> {
    at(gpa)
}

/// True if L1 shadows frame `gfn` as a page table: stores into it are to be noted.
#[inline]
#[must_use]
pub fn is_table(gfn: u64) -> bool {
    // SAFETY: L1 maps a bit for every guest frame, read-only; `gfn` is one, checked by the
    // caller's having an entry in it.
    let word = unsafe { &*((window::TABLE_BITMAP + gfn / 64 * 8) as *const AtomicU64) };
    word.load(Acquire) >> (gfn % 64) & 1 != 0
}

/// Stores `bytes` at `gpa`, which the caller owns.
///
/// # Panics
/// Outside guest memory.
pub fn store(gpa: u64, bytes: &[u8]) {
    assert!(contains(gpa, bytes.len() as u64), "store outside guest memory");
    // SAFETY: guest memory (checked); before the kernel starts, or in frames the shim keeps for
    // itself, nobody else uses it.
    unsafe {
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), address(gpa) as *mut u8, bytes.len());
    }
}

/// Stores `len` zeros at `gpa`; see [`store`].
///
/// # Panics
/// Outside guest memory.
pub fn zero(gpa: u64, len: u64) {
    assert!(contains(gpa, len), "store outside guest memory");
    // SAFETY: as for `store`.
    unsafe { core::ptr::write_bytes(address(gpa) as *mut u8, 0, len as usize) };
}

/// Guest memory as a slice, before the kernel runs.
///
/// # Safety
/// Nobody writes the range while the slice lives.
///
/// # Panics
/// Outside guest memory.
#[must_use]
pub unsafe fn slice(gpa: u64, len: u64) -> &'static [u8] {
    assert!(contains(gpa, len), "slice outside guest memory");
    // SAFETY: guest memory (checked), and the caller's promise.
    unsafe { core::slice::from_raw_parts(address(gpa) as *const u8, len as usize) }
}

/// All guest memory, for devices.
#[derive(Clone, Copy, Debug)]
pub struct Guest;

impl Memory for Guest {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Option<()> {
        if gpa.is_multiple_of(8)
            && let (words, []) = out.as_chunks_mut()
        {
            for (place, at) in words.iter_mut().zip((gpa..).step_by(8)) {
                *place = word(at)?.load(Relaxed).to_le_bytes();
            }
            return Some(());
        }
        for (place, at) in out.iter_mut().zip(gpa..) {
            *place = byte(at)?.load(Relaxed);
        }
        Some(())
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Option<()> {
        if gpa.is_multiple_of(8)
            && let (words, []) = bytes.as_chunks()
        {
            for (&value, at) in words.iter().zip((gpa..).step_by(8)) {
                word(at)?.store(u64::from_le_bytes(value), Relaxed);
            }
            return Some(());
        }
        for (&value, at) in bytes.iter().zip(gpa..) {
            byte(at)?.store(value, Relaxed);
        }
        Some(())
    }

    fn load16(&self, gpa: u64) -> Option<u16> {
        word16(gpa).map(|word| word.load(Acquire))
    }

    fn load32(&self, gpa: u64) -> Option<u32> {
        word32(gpa).map(|word| word.load(Acquire))
    }

    fn store16(&self, gpa: u64, value: u16) -> Option<()> {
        word16(gpa).map(|word| word.store(value, Release))
    }

    fn store32(&self, gpa: u64, value: u32) -> Option<()> {
        word32(gpa).map(|word| word.store(value, Release))
    }

    fn exchange32(&self, gpa: u64, old: u32, new: u32) -> Option<Result<(), u32>> {
        word32(gpa).map(|word| word.compare_exchange(old, new, AcqRel, Acquire).map(|_| ()))
    }
}
