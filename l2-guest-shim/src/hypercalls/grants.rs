//! The grant table: how kernels come to have one. `crate::grants` reads what they write there.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use super::{Failure, Outcome, answer};
use crate::{
    guest::{self, GRANT_FRAMES, facts},
    hw::{area::Area, copy},
    store::page,
    xen::{
        errno::{EINVAL, ENOSYS},
        grant::{BAD, OKAY, QUERY_SIZE, SETUP_TABLE},
    },
};

/// `grant_table_op(command, argument, count)`. Linux goes without if there is nobody to lend to; other
/// kernels cannot. Entries are of version 1, which needs not be chosen.
pub extern "C" fn grant_table_op(
    command: u64,
    at: u64,
    count: u64,
    _: u64,
    _: u64,
    _: Area,
) -> i64 {
    answer(match command {
        _ if !guest::is_foreign() && !page::is_open() => Err(Failure(ENOSYS)),
        SETUP_TABLE | QUERY_SIZE if count as u32 != 1 => Err(Failure(EINVAL)),
        SETUP_TABLE => setup_table(at),
        QUERY_SIZE => query_size(at),
        _ => Err(Failure(ENOSYS)),
    })
}

/// Arguments: domain and number of frames, 32 bits each; status; address of the list of frames.
fn setup_table(at: u64) -> Outcome {
    let [head, _, list]: [u64; 3] = copy::read(at)?;
    let frames = head >> 32;
    let status = if frames > GRANT_FRAMES { BAD } else { OKAY };
    if status == OKAY {
        for frame in 0..frames {
            copy::write(list.wrapping_add(8 * frame), &((facts().grant_table >> 12) + frame))?;
        }
    }
    copy::write(at.wrapping_add(8), &status)?;
    Ok(0)
}

/// Argument: domain; results: frames in use, frames at most, status, 32 bits each but the last. All are
/// in use.
fn query_size(at: u64) -> Outcome {
    let frames = GRANT_FRAMES as u32;
    copy::write(at.wrapping_add(4), &[frames, frames])?;
    copy::write(at.wrapping_add(12), &OKAY)?;
    Ok(0)
}
