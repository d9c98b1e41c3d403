//! Several hypercalls in one.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use super::{Failure, Outcome, answer, dispatch};
use crate::{
    hw::{area::Area, copy},
    xen::{errno::ENOSYS, nr},
};

/// Size of `struct multicall_entry`: number, result, six arguments.
const ENTRY: u64 = 64;

/// `multicall(entries, count)`.
pub extern "C" fn multicall(entries: u64, count: u64, _: u64, _: u64, _: u64, area: Area) -> i64 {
    answer(run(entries, count, area))
}

fn run(entries: u64, count: u64, area: Area) -> Outcome {
    for number in 0..count {
        let at = entries.wrapping_add(ENTRY * number);
        let [call, _, a, b, c, d, e]: [u64; 7] = copy::read(at)?;
        // A multicall within a multicall would have no end, a return no meaning.
        let result = match call as usize {
            nr::MULTICALL | nr::IRET => ENOSYS,
            _ => dispatch(call, [a, b, c, d, e], area),
        };
        copy::write(at.wrapping_add(8), &result).map_err(Failure::from)?;
    }
    Ok(0)
}
