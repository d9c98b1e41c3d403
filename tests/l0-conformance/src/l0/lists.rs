//! Writes lists into L1's memory.
//! May: nothing.

use super::args::List;
use crate::runtime::ram;
use pv_abi::l0::list::{Access, MapRange};
use zerocopy::{Immutable, IntoBytes};

/// All that a mapping can allow.
pub const ALL: Access = Access::all();

/// A list of these entries, in pages of its own.
pub fn of<T: IntoBytes + Immutable>(entries: &[T]) -> List {
    let bytes = size_of_val(entries) as u64;
    let address = ram::pages(bytes.div_ceil(ram::PAGE).max(1));
    for (index, entry) in entries.iter().enumerate() {
        ram::write(address + (index * size_of::<T>()) as u64, entry);
    }
    List { address, count: entries.len() as u32 }
}

/// A list of `count` entries that `entry` makes from their indices.
pub fn made<T: IntoBytes + Immutable>(count: u32, entry: impl Fn(u32) -> T) -> List {
    let size = size_of::<T>() as u64;
    let address = ram::pages((u64::from(count) * size).div_ceil(ram::PAGE).max(1));
    (0..count).for_each(|index| ram::write(address + u64::from(index) * size, &entry(index)));
    List { address, count }
}

/// An entry for MAP.
pub fn map(gpa: u64, l1: u64, pages: u64) -> MapRange {
    MapRange { gpa, l1, pages, access: ALL.bits(), reserved: 0 }
}

/// An entry for UNMAP, SHARE and UNSHARE.
pub fn unmap(gpa: u64, pages: u64) -> MapRange {
    MapRange { gpa, l1: 0, pages, access: 0, reserved: 0 }
}

/// An entry for PROTECT.
pub fn protect(gpa: u64, pages: u64, access: Access) -> MapRange {
    MapRange { gpa, l1: 0, pages, access: access.bits(), reserved: 0 }
}
