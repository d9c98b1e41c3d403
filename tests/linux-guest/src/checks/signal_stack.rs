//! Checks alternate signal stacks.

use crate::{
    check::{Context, Verdict},
    sys::{
        mapping::{Mapping, Sharing},
        stack, trap,
    },
};
use anyhow::{Context as _, Result, ensure};

/// Bytes of the signal stack.
const STACK: usize = 256 << 10;

/// Handlers run there, also nested, and when the ordinary stack is used up.
pub fn run(_: &Context) -> Result<Verdict> {
    let memory = Box::leak(Box::new(Mapping::anonymous(STACK, Sharing::Private)?));
    let range = stack::use_for_signals(memory)?;
    let (outer, inner) = stack::nested()?.context("the nested handlers did not run as expected")?;
    ensure!(range.contains(&outer), "the handler ran at {outer:#x}, not in {range:x?}");
    ensure!(range.contains(&inner), "the nested handler ran at {inner:#x}, not in {range:x?}");
    ensure!(inner < outer, "the nested handler's frame is not below the outer one's");

    trap::catch_faults()?;
    for _ in 0..3 {
        let trap = stack::overflow().context("the stack has no end")?;
        ensure!(trap.signal == libc::SIGSEGV, "the stack's end raised signal {}", trap.signal);
        trap.expect_error(trap::WRITE | trap::USER)?;
        ensure!(range.contains(&trap.stack), "the handler ran at {:#x}", trap.stack);
    }
    Ok(Verdict::Pass)
}
