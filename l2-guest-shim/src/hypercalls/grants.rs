//! The grant table: kernels other than Linux cannot do without one, though nobody takes anything.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use super::{Failure, Outcome, answer};
use crate::{
    guest::{self, facts},
    hw::{area::Area, copy},
    xen::{
        errno::ENOSYS,
        grant::{BAD, OKAY, SETUP_TABLE},
    },
};

/// `grant_table_op(command, argument, count)`. Linux goes without: it has no devices here.
pub extern "C" fn grant_table_op(command: u64, at: u64, _: u64, _: u64, _: u64, _: Area) -> i64 {
    answer(match command {
        SETUP_TABLE if guest::is_foreign() => setup_table(at),
        _ => Err(Failure(ENOSYS)),
    })
}

/// Arguments: domain and number of frames, 32 bits each; status; address of the list of frames.
/// The table is one frame.
fn setup_table(at: u64) -> Outcome {
    let [head, _, list]: [u64; 3] = copy::read(at)?;
    let status = if head >> 32 > 1 { BAD } else { OKAY };
    if status == OKAY && head >> 32 == 1 {
        copy::write(list, &(facts().grant_table >> 12))?;
    }
    copy::write(at.wrapping_add(8), &status)?;
    Ok(0)
}
