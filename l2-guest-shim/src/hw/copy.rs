//! Copies to and from addresses of the kernel's, which may be anything.
//! May: unsafe, guest-memory. Context: shim, PVCS drained. Input: guest-controlled addresses.
#![expect(unsafe_code, reason = "a copy that survives faults")]

use zerocopy::{FromBytes, Immutable, IntoBytes};

unsafe extern "C" {
    fn shim_copy(to: *mut u8, from: *const u8, len: usize) -> usize;
    static shim_copy_words: u8;
    static shim_copy_bytes: u8;
    static shim_copy_words_fault: u8;
    static shim_copy_bytes_fault: u8;
}

/// The address cannot be used: the kernel gets -EFAULT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress;

/// Lowest address that is the kernel's. What lies below is user memory or the hypervisor's hole;
/// a kernel that passes it is confused, and the shim's own window must not be reached this way.
const KERNEL_START: u64 = 0xffff_8880_0000_0000;

fn check(address: u64, len: usize) -> Result<(), BadAddress> {
    let end = address.checked_add(len as u64).ok_or(BadAddress)?;
    // The last page of the address space is never mapped.
    if address >= KERNEL_START && end <= u64::MAX - 0xfff { Ok(()) } else { Err(BadAddress) }
}

/// Reads a `T` at `address`.
///
/// # Errors
/// [`BadAddress`].
#[inline]
pub fn read<T: FromBytes + IntoBytes>(address: u64) -> Result<T, BadAddress> {
    let mut value = T::new_zeroed();
    read_bytes(address, value.as_mut_bytes())?;
    Ok(value)
}

/// Fills `out` from `address`.
///
/// # Errors
/// [`BadAddress`].
pub fn read_bytes(address: u64, out: &mut [u8]) -> Result<(), BadAddress> {
    check(address, out.len())?;
    // SAFETY: `out` is ours to write. The source may fault: then the copy ends early.
    let left = unsafe { shim_copy(out.as_mut_ptr(), address as *const u8, out.len()) };
    if left == 0 { Ok(()) } else { Err(BadAddress) }
}

/// Writes `value` at `address`.
///
/// # Errors
/// [`BadAddress`]; part of it may have been written.
#[inline]
pub fn write<T: IntoBytes + Immutable + ?Sized>(address: u64, value: &T) -> Result<(), BadAddress> {
    let bytes = value.as_bytes();
    check(address, bytes.len())?;
    // SAFETY: the target is the kernel's memory, never the shim's (checked); it may fault.
    let left = unsafe { shim_copy(address as *mut u8, bytes.as_ptr(), bytes.len()) };
    if left == 0 { Ok(()) } else { Err(BadAddress) }
}

/// Reads up to `out.len()` bytes anywhere in the guest's address space, user memory included:
/// instruction bytes. Returns how many there are.
pub fn read_anywhere(address: u64, out: &mut [u8]) -> usize {
    // SAFETY: as for `read_bytes`; reading the window's own memory gives away nothing that the
    // kernel could not read itself.
    let left = unsafe { shim_copy(out.as_mut_ptr(), address as *const u8, out.len()) };
    out.len() - left
}

/// Where a copy goes on that faulted at `rip`, if it is one.
#[must_use]
pub fn fixup(rip: u64) -> Option<u64> {
    let sites = [
        (&raw const shim_copy_words, &raw const shim_copy_words_fault),
        (&raw const shim_copy_bytes, &raw const shim_copy_bytes_fault),
    ];
    sites.into_iter().find(|&(site, _)| site as u64 == rip).map(|(_, resume)| resume as u64)
}
