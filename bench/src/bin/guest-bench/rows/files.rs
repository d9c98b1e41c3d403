//! Measures small operations on files.

use super::Operation;
use crate::sys::file::{Handle, Pages, create_and_remove};
use std::path::Path;

/// A byte that costs nothing to make.
pub fn read_zero() -> Result<Operation, String> {
    let mut file = Handle::open("/dev/zero")?;
    Ok(Box::new(move |n, watch| watch.time(|| (0..n).for_each(|_| file.read_byte()))))
}

/// An MSR read in the kernel.
pub fn read_msr() -> Result<Operation, String> {
    const PLACE: &str = "/dev/cpu/0/msr";
    /// IA32_APIC_BASE.
    const MSR: u64 = 0x1b;
    if !Path::new(PLACE).exists() {
        return Err(format!("no {PLACE}"));
    }
    let mut file = Handle::open(PLACE)?;
    file.read_at(MSR)?;
    Ok(Box::new(move |n, watch| {
        watch.time(|| {
            for _ in 0..n {
                // It was read before.
                let _ = file.read_at(MSR);
            }
        });
    }))
}

/// A new name in a folder of a tmpfs.
pub fn create_unlink() -> Result<Operation, String> {
    create_and_remove()?;
    Ok(Box::new(|n, watch| {
        watch.time(|| {
            for _ in 0..n {
                // It worked before.
                let _ = create_and_remove();
            }
        });
    }))
}

/// A page of a file in memory, seen through a mapping.
pub fn map_touch_unmap() -> Result<Operation, String> {
    let file = Pages::new(1)?;
    Ok(Box::new(move |n, watch| watch.time(|| (0..n).for_each(|_| file.map_read_unmap()))))
}
