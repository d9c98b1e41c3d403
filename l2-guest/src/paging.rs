//! Maps pages for user mode in the tables that the kernel was started with.
//! May: unsafe, take-frame. Context: any. Input: addresses that user mode names.
#![expect(unsafe_code, reason = "page tables are raw memory")]

use crate::{frame::Frame, smp};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Relaxed},
};
use pv_abi::{PAGE_SIZE, addr::Gva, ext::NativeBoot};

/// Where addresses of user mode start: below, memory is mapped one to one for the kernel.
pub const USER_START: u64 = 1 << 39;
/// One past them: the end of the lower half.
pub const USER_END: u64 = 1 << 47;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;
/// The frame in an entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What user mode may do with a page, besides reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Read,
    /// Write it.
    Write,
    /// Execute it.
    Execute,
}

/// Why a page was not mapped. The frame is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The address is no page's, or outside [`USER_START`] to [`USER_END`].
    Address,
    /// There is a page already.
    Taken,
    /// No frame is left for a page table.
    Memory,
}

/// An address that is not mapped for user mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotMapped(pub u64);

/// Maps `frame` at `address` for user mode.
///
/// # Errors
/// Says why not.
pub fn map_user(address: u64, frame: Frame, access: Access) -> Result<(), Refused> {
    let inside = (USER_START..USER_END).contains(&address);
    if !inside || !address.is_multiple_of(PAGE_SIZE as u64) {
        return Err(Refused::Address);
    }
    let entry = entry_of(address, Missing::Add).ok_or(Refused::Memory)?;
    let rights = match access {
        Access::Read => NO_EXECUTE,
        Access::Write => NO_EXECUTE | WRITE,
        Access::Execute => 0,
    };
    // From not present to present no flush is needed (MMU-6).
    let new = frame.gpa() | rights | USER | PRESENT;
    entry.compare_exchange(0, new, AcqRel, Relaxed).map_err(|_| Refused::Taken)?;
    Ok(())
}

/// Takes the page at `address` from user mode, on all vCPUs; returns its frame, if there was one.
pub fn unmap_user(address: u64) -> Option<Frame> {
    let entry = user_entry(address)?;
    let old = entry.swap(0, Relaxed);
    smp::flush_page(address);
    // SAFETY: `map_user` consumed the frame, and user mode has lost it.
    (old & PRESENT != 0).then(|| unsafe { Frame::again(old & FRAME) })
}

/// Copies what user mode has at `address`.
///
/// # Errors
/// Part of it is not mapped; some bytes may have been copied.
pub fn read_user(address: u64, bytes: &mut [u8]) -> Result<(), NotMapped> {
    for (offset, byte) in (0..).zip(bytes) {
        let at = address.checked_add(offset).ok_or(NotMapped(address))?;
        let entry = user_entry(at).map_or(0, |entry| entry.load(Relaxed));
        if entry & PRESENT == 0 {
            return Err(NotMapped(at));
        }
        // SAFETY: a byte of a user's frame, mapped one to one. User mode on another vCPU may change it
        // meanwhile: it is one value or the other.
        *byte = unsafe { ((entry & FRAME | Gva(at).page_offset()) as *const u8).read_volatile() };
    }
    Ok(())
}

/// What to do where a table is missing.
#[derive(Clone, Copy)]
enum Missing {
    Stop,
    Add,
}

/// The entry of a user's address, if it has one.
fn user_entry(address: u64) -> Option<&'static AtomicU64> {
    let inside = (USER_START..USER_END).contains(&address);
    inside.then(|| entry_of(address, Missing::Stop)).flatten()
}

/// The last-level entry of `address`, which is user mode's.
fn entry_of(address: u64, missing: Missing) -> Option<&'static AtomicU64> {
    let mut table = NativeBoot::TABLES.0;
    for level in [4, 3, 2] {
        let entry = entry_at(table, Gva(address).index(level));
        if entry.load(Relaxed) & PRESENT == 0 {
            match missing {
                Missing::Stop => return None,
                Missing::Add => {
                    let new = Frame::take()?.gpa() | USER | WRITE | PRESENT;
                    // If another vCPU was faster, its table is as good.
                    let _ = entry.compare_exchange(0, new, AcqRel, Relaxed);
                }
            }
        }
        table = entry.load(Relaxed) & FRAME;
    }
    Some(entry_at(table, Gva(address).index(1)))
}

fn entry_at(table: u64, index: usize) -> &'static AtomicU64 {
    // SAFETY: a page table is never given back, is mapped one to one, and accessed as atomics only;
    // the index is below 512.
    unsafe { &*(table as *const AtomicU64).add(index) }
}
