//! Exceptions from user mode.

use super::Check;
use crate::{
    tap::{Verdict, equal},
    user::{Start, code},
};
use pv_abi::event;

pub const CHECKS: &[Check] = &[("event.user_exceptions", user_exceptions)];

/// Each exception arrives with its vector, its error code and the right RIP.
fn user_exceptions() -> Verdict {
    let cases = [
        (code::divide as fn() -> u64, event::DE, 0, 4),
        (code::undefined, event::UD, 0, 0),
        (code::breakpoint, event::BP, 0, 1),
        (code::overflow, event::OF, 0, 2),
        (code::int80, event::INT80, 0, 2),
        (code::halt, event::GP, 0, 0),
        (code::synthetic_cpuid, event::GP, 0, 0),
    ];
    for (start, vector, error, past) in cases {
        let trap = Start::at(start()).run();
        equal("vector", trap.vector.unwrap_or(0xff).into(), vector.into())?;
        equal("error code", trap.error, error)?;
        equal("RIP", trap.rip, start() + past)?;
    }
    Ok(())
}
