//! Page-table updates.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.
//!
//! Entries are stored as they are: under shadow paging a guest's page tables need no approval.
//! L1 hears of a store only if it shadows the table.

use super::{Failure, Outcome, answer};
use crate::{
    hw::{
        area::Area,
        call, copy,
        memory::{self, is_table},
    },
    xen::{
        errno::{EINVAL, ENOSYS},
        mmu_update::{MACHPHYS, NO_TRANSLATE, NORMAL, PRESERVE_AD},
        uvmf,
    },
};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, SeqCst},
};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const ACCESSED_DIRTY: u64 = 0x60;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Stores a page-table entry and tells L1 if it must know.
#[inline]
pub(super) fn store(entry: &AtomicU64, gpa: u64, value: u64, area: Area) {
    // Sequentially consistent: visible before the bitmap is looked at, which a plain store would
    // not be.
    let old = entry.swap(value, SeqCst);
    // Where nothing was present, nothing can be shadowed: no note is owed (rule F4).
    if old & PRESENT != 0 {
        announce(gpa, area);
    }
}

#[inline(always)]
fn announce(gpa: u64, area: Area) {
    if is_table(gpa >> 12) && !area.note(gpa) {
        announce_late(gpa, area);
    }
}

/// The ring is full. Any entry to L1 drains it.
#[cold]
fn announce_late(gpa: u64, area: Area) {
    let _ = call::counter(0);
    let _ = area.note(gpa);
}

/// `mmu_update(requests, count, done, domain)`.
pub extern "C" fn mmu_update(
    requests: u64,
    count: u64,
    done: u64,
    _: u64,
    _: u64,
    area: Area,
) -> i64 {
    if count == 1 && done == 0 {
        return answer(one_update(requests, area));
    }
    several_updates(requests, count, done, area)
}

#[inline(never)]
fn several_updates(requests: u64, count: u64, done: u64, area: Area) -> i64 {
    let mut result = Ok(0);
    let mut number = 0;
    while number < count {
        result = one_update(requests.wrapping_add(16 * number), area);
        if result.is_err() {
            break;
        }
        number += 1;
    }
    if done != 0 && copy::write(done, &(number as u32)).is_err() && result.is_ok() {
        result = Err(Failure(crate::xen::errno::EFAULT));
    }
    answer(result)
}

#[inline(always)]
fn one_update(request: u64, area: Area) -> Outcome {
    let [target, value] = copy::read_pair(request)?;
    let (command, gpa) = (target & 3, target & !7);
    if command == MACHPHYS {
        // Machine addresses are physical addresses: there is nothing to update.
        return Ok(0);
    }
    let entry = memory::word(gpa).ok_or(Failure(EINVAL))?;
    match command {
        NORMAL | NO_TRANSLATE => store(entry, gpa, value, area),
        PRESERVE_AD => {
            let mut old = entry.load(Acquire);
            loop {
                let new = value | old & ACCESSED_DIRTY;
                match entry.compare_exchange(old, new, SeqCst, Acquire) {
                    Ok(_) => break,
                    Err(now) => old = now,
                }
            }
            announce(gpa, area);
        }
        _ => return Err(Failure(ENOSYS)),
    }
    Ok(0)
}

/// `update_va_mapping(address, entry, flags)`.
pub extern "C" fn update_va_mapping(
    address: u64,
    value: u64,
    flags: u64,
    _: u64,
    _: u64,
    area: Area,
) -> i64 {
    let root = area.data().root.load(Relaxed);
    let Some(gpa) = leaf_entry(root, address) else { return EINVAL };
    let Some(entry) = memory::word(gpa) else { return EINVAL };
    let old = entry.load(Relaxed);
    // Kernels make their page tables, descriptor tables and the like read-only with this call,
    // because Xen demands it. Nobody demands it here, and the kernel's own stores into its page
    // tables would trap: that they may be written stays as it is, whatever else changes.
    let same_frame = old & value & PRESENT != 0 && (old ^ value) & ADDRESS == 0;
    let value = if same_frame { value | old & WRITABLE } else { value };
    if (old ^ value) & !ACCESSED_DIRTY != 0 {
        store(entry, gpa, value, area);
    }
    match flags & uvmf::KIND {
        uvmf::TLB_FLUSH => call::flush(),
        uvmf::INVLPG => call::flush_address(address),
        _ => {}
    }
    0
}

/// Where the leaf entry for `address` lies under the tables in frame `root`.
fn leaf_entry(root: u64, address: u64) -> Option<u64> {
    let mut table = root << 12;
    for level in [3, 2, 1] {
        let entry = memory::word(table + 8 * (address >> (12 + 9 * level) & 511))?.load(Relaxed);
        if entry & PRESENT == 0 || entry & LARGE != 0 {
            return None;
        }
        table = entry & ADDRESS;
    }
    Some(table + 8 * (address >> 12 & 511))
}
