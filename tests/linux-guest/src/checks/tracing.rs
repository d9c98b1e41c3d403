//! Checks what a tracer sees: single steps and hardware breakpoints.

use crate::{
    check::{Context, Verdict},
    sys::traced::{Tracee, WATCHED_VALUE, stepped_lengths, stepped_start, watched},
};
use anyhow::{Context as _, Result, ensure};

/// `si_code` values of SIGTRAP.
const TRAP_TRACE: i32 = 2;
const TRAP_HWBKPT: i32 = 4;

/// The step that executes a system call.
const SYSTEM_CALL: usize = 61;

/// Every step moves RIP by one instruction, over a system call and a breakpoint too.
pub fn single_step(_: &Context) -> Result<Verdict> {
    let tracee = Tracee::at(stepped_start())?;
    let mut expected = stepped_start();
    for (index, length) in stepped_lengths().into_iter().enumerate() {
        expected += length;
        let stop = tracee.step().with_context(|| format!("step {index}"))?;
        ensure!(stop.rip == expected, "step {index}: RIP {:#x}, not {expected:#x}", stop.rip);
        if index == SYSTEM_CALL {
            let (found, pid) = (tracee.rax()?, tracee.pid().as_raw() as u64);
            ensure!(found == pid, "the stepped getpid gave {found}, not {pid}");
        }
    }
    Ok(Verdict::Pass)
}

/// DR7: enable bits of breakpoints 0 and 1, breakpoint 1 on writes of 8 bytes.
const BOTH: u64 = 1 | 1 << 2 | 0b01 << 20 | 0b10 << 22;

/// An execution breakpoint stops before, a write watchpoint behind its instruction; cleared, they
/// stop nothing.
pub fn breakpoints(_: &Context) -> Result<Verdict> {
    let places = watched();
    let tracee = Tracee::at(places.start)?;
    tracee.set_debug(0, places.target)?;
    tracee.set_debug(1, places.word)?;
    tracee.set_debug(7, BOTH)?;
    for (bit, rip) in [(1, places.target), (2, places.written)] {
        let stop = tracee.go_on()?;
        ensure!(stop.rip == rip, "stopped at {:#x}, not {rip:#x} ({places:x?})", stop.rip);
        ensure!(stop.code == TRAP_HWBKPT, "si_code is {}, not {TRAP_HWBKPT}", stop.code);
        let status = tracee.debug(6)?;
        ensure!(status & 0xf == bit, "DR6 is {status:#x}, bit value {bit} expected");
        tracee.set_debug(6, 0)?;
    }
    ensure!(tracee.word(places.word)? == WATCHED_VALUE, "the watched write did not happen");
    let stop = tracee.go_on()?;
    ensure!(stop.rip == places.end, "the run ended at {:#x}, not {:#x}", stop.rip, places.end);

    let tracee = Tracee::at(places.start)?;
    tracee.set_debug(0, places.target)?;
    tracee.set_debug(7, 1)?;
    tracee.set_debug(7, 0)?;
    let stop = tracee.go_on()?;
    ensure!(stop.rip == places.end, "a cleared breakpoint stopped at {:#x}", stop.rip);
    ensure!(stop.code != TRAP_TRACE, "the breakpoint instruction reports a single step");
    Ok(Verdict::Pass)
}
