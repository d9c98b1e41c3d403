//! Extended page-table operations: pins, base pointers, flushes, the local descriptor table.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use super::{Failure, Outcome, answer};
use crate::{
    guest::{facts, roots},
    hw::{area::Area, call, copy},
    xen::{
        errno::{EINVAL, ENOSYS},
        mmuext::{
            FLUSH_CACHE, INVLPG_ALL, INVLPG_LOCAL, INVLPG_MULTI, NEW_BASEPTR, NEW_USER_BASEPTR,
            PIN_L1, PIN_L2, PIN_L3, PIN_L4, SET_LDT, TLB_FLUSH_ALL, TLB_FLUSH_LOCAL,
            TLB_FLUSH_MULTI, UNPIN,
        },
    },
};
use core::sync::atomic::Ordering::Relaxed;

/// `struct mmuext_op`: command, frame or address, count or mask address.
type Operation = [u64; 3];
const SIZE: u64 = size_of::<Operation>() as u64;

/// `mmuext_op(operations, count, done, domain)`.
pub extern "C" fn mmuext_op(
    operations: u64,
    count: u64,
    done: u64,
    _: u64,
    _: u64,
    area: Area,
) -> i64 {
    // A flush alone. Without anything behind it, it needs no register that must be saved.
    if count == 1 && done == 0 && frequent(operations, area) {
        return 0;
    }
    pair(operations, count, done, area)
}

/// The two base pointers of a context switch; or whatever else.
#[inline(never)]
fn pair(operations: u64, count: u64, done: u64, area: Area) -> i64 {
    let mut number = 0;
    if count == 2 && done == 0 && frequent(operations, area) {
        if frequent(operations.wrapping_add(SIZE), area) {
            return 0;
        }
        number = 1;
    }
    others(operations, number, count, done, area)
}

/// Does the operation at `address` if it is one that context switches and faults are made of; the
/// others cost registers. False if it is not, or cannot be done.
#[inline(always)]
fn frequent(address: u64, area: Area) -> bool {
    let Ok([command, first]) = copy::read_pair(address) else { return false };
    match command as u32 {
        INVLPG_LOCAL => call::flush_address(first),
        NEW_BASEPTR if first < facts().end_pages => load(first, area),
        NEW_USER_BASEPTR => {}
        _ => return false,
    }
    true
}

/// Loads the root in frame `root`, which exists.
#[inline(always)]
fn load(root: u64, area: Area) {
    area.data().root.store(root, Relaxed);
    roots::load(root);
}

/// The operations from `number` on.
#[inline(never)]
fn others(operations: u64, mut number: u64, count: u64, done: u64, area: Area) -> i64 {
    let mut result = Ok(0);
    while number < count {
        result = copy::read::<Operation>(operations.wrapping_add(SIZE * number))
            .map_err(Failure::from)
            .and_then(|operation| one(operation, area));
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

#[inline]
fn one([command, first, second]: Operation, area: Area) -> Outcome {
    let frame = || if first < facts().end_pages { Ok(first) } else { Err(Failure(EINVAL)) };
    match command as u32 {
        // Lower tables are tables when they are linked; only roots are remembered.
        PIN_L1 | PIN_L2 | PIN_L3 => {
            frame()?;
        }
        PIN_L4 => roots::pin(frame()?),
        UNPIN => roots::unpin(frame()?),
        NEW_BASEPTR => load(frame()?, area),
        // The kernel's own root serves both modes; its lower half is the user root's.
        NEW_USER_BASEPTR => {}
        TLB_FLUSH_LOCAL => call::flush(),
        INVLPG_LOCAL => call::flush_address(first),
        TLB_FLUSH_ALL => call::flush_vcpus(u64::MAX),
        INVLPG_ALL => call::flush_address_of(u64::MAX, first),
        TLB_FLUSH_MULTI => call::flush_vcpus(copy::read(second)?),
        INVLPG_MULTI => call::flush_address_of(copy::read(second)?, first),
        FLUSH_CACHE => {}
        SET_LDT => {
            if !call::load_ldt(first, second & 0xffff_ffff) {
                return Err(Failure(EINVAL));
            }
        }
        _ => return Err(Failure(ENOSYS)),
    }
    Ok(0)
}
