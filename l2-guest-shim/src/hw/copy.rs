//! Copies to and from addresses of the kernel's, which may be anything.
//! May: unsafe, guest-memory. Context: shim, PVCS drained. Input: guest-controlled addresses.
#![expect(unsafe_code, reason = "a copy that survives faults")]

use core::arch::asm;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An instruction that may fault on an address of the kernel's, and where to go on if it does.
#[repr(C)]
struct Fixup {
    site: u64,
    resume: u64,
}

unsafe extern "C" {
    fn shim_copy(to: *mut u8, from: *const u8, len: usize) -> usize;
    static shim_fixups: Fixup;
    static shim_fixups_end: Fixup;
}

/// The address cannot be used: the kernel gets -EFAULT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress;

/// End of the lower half, where user memory is and, of kernels other than Linux, the kernel too.
const LOW_END: u64 = 1 << 47;
/// Lowest address above the hypervisor's hole, which the shim's own window is a part of.
const HIGH_START: u64 = 0xffff_8880_0000_0000;

fn check(address: u64, len: usize) -> Result<(), BadAddress> {
    let end = address.checked_add(len as u64).ok_or(BadAddress)?;
    // The last page of the address space is never mapped.
    let high = address >= HIGH_START && end <= u64::MAX - 0xfff;
    if high || end <= LOW_END { Ok(()) } else { Err(BadAddress) }
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

/// Reads two words at `address`: what most hypercalls are handed.
///
/// # Errors
/// [`BadAddress`].
#[inline(always)]
pub fn read_pair(address: u64) -> Result<[u64; 2], BadAddress> {
    check(address, 16)?;
    let (first, second, fault): (u64, u64, u32);
    // SAFETY: only loads. They may fault: then the asm ends with `fault` still set.
    unsafe {
        asm!(
            "mov {fault:e}, 1",
            "2: mov {first}, [{address}]",
            "3: mov {second}, [{address} + 8]",
            "xor {fault:e}, {fault:e}",
            "4:",
            ".pushsection .fixups, \"a\", @progbits",
            ".quad 2b, 4b, 3b, 4b",
            ".popsection",
            address = in(reg) address,
            first = out(reg) first,
            second = out(reg) second,
            fault = out(reg) fault,
            options(readonly, nostack),
        );
    }
    if fault == 0 { Ok([first, second]) } else { Err(BadAddress) }
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
    let (start, end) = (&raw const shim_fixups, &raw const shim_fixups_end);
    // SAFETY: the linker script puts these two around the fixups, which are made by `entry.S` and
    // above and lie in read-only memory.
    let fixups = unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
    fixups.iter().find(|fixup| fixup.site == rip).map(|fixup| fixup.resume)
}
