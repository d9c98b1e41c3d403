//! Reaches registers of devices in memory.
//! May: unsafe, alloc. Context: boot; registers: any. Input: the machine's devices.
#![expect(unsafe_code, reason = "memory-mapped registers")]

use super::physmap::DIRECT_MAP;
use crate::{boot::cpus, memory::paging::NoMemory};
use arrayvec::ArrayVec;
use core::{marker::PhantomData, ops::Range};
use pv_abi::addr::Hpa;
use spin::Mutex;
use zerocopy::{FromBytes, IntoBytes};

/// Where registers are mapped: the last GiB of the direct map's first slot, so that they may be
/// anywhere in physical memory. No machine has RAM there whose size fits the direct map's tables.
const WINDOW: u64 = DIRECT_MAP + (511 << 30);
/// Regions that can be mapped.
const REGIONS: usize = 64;

/// Physical regions that are mapped, and where.
static MAPPED: Mutex<ArrayVec<(Range<u64>, u64), REGIONS>> = Mutex::new(ArrayVec::new_const());

/// Maps `len` bytes of registers at physical address `start`.
///
/// # Errors
/// [`NoMemory`] for tables, or for one more region.
pub fn map(start: u64, len: u64) -> Result<(), NoMemory> {
    let pages = start & !0xfff..start.saturating_add(len).next_multiple_of(4096);
    let mut mapped = MAPPED.lock();
    if mapped.iter().any(|(region, _)| region.start <= pages.start && pages.end <= region.end) {
        return Ok(());
    }
    let at = mapped.last().map_or(WINDOW, |(region, at)| at + (region.end - region.start));
    for page in pages.clone().step_by(4096) {
        cpus::map_registers(at + (page - pages.start), Hpa(page))?;
    }
    mapped.try_push((pages, at)).map_err(|_| NoMemory)
}

/// Where `len` bytes of registers at physical address `start` are, if they are mapped in one piece.
#[must_use]
pub fn mapped(start: u64, len: u64) -> Option<u64> {
    let end = start.checked_add(len)?;
    let holds = |region: &Range<u64>| region.start <= start && end <= region.end;
    let mapped = MAPPED.lock();
    let (region, at) = mapped.iter().find(|(region, _)| holds(region))?;
    Some(at + (start - region.start))
}

/// A register of a device, mapped: a whole number.
#[derive(Clone, Copy, Debug)]
pub struct Register<T>(u64, PhantomData<T>);

impl<T: FromBytes + IntoBytes> Register<T> {
    /// The one at physical address `start`, if it is mapped.
    #[must_use]
    pub fn at(start: u64) -> Option<Self> {
        let size = size_of::<T>() as u64;
        mapped(start, size).filter(|at| at.is_multiple_of(size)).map(|at| Self(at, PhantomData))
    }

    /// Writes it.
    #[inline]
    pub fn write(self, value: T) {
        // SAFETY: the page is mapped for good, uncached, and holds a device's registers; `at` has seen to the
        // alignment.
        unsafe { (self.0 as *mut T).write_volatile(value) }
    }

    /// Reads it.
    #[must_use]
    pub fn read(self) -> T {
        // SAFETY: as for `write`.
        unsafe { (self.0 as *const T).read_volatile() }
    }
}
