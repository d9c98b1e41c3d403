//! Checks that FS and GS bases are kept, and are kept apart between processes.

use crate::{
    check::{Context, Verdict},
    pinning,
    sys::{
        child::Child,
        segment_base::{self, Reading, Register, Way, hold},
    },
};
use anyhow::{Result, bail, ensure};
use core::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// How long processes compete for the CPU: many time slices.
const COMPETE: Duration = Duration::from_millis(400);
/// Turns of the empty loop while a foreign base is in place.
const SPINS: u64 = 200_000;

/// Every register and way alone, then several processes on one CPU.
pub fn run(context: &Context) -> Result<Verdict> {
    pinning::to_one_cpu()?;
    let ways: &[Way] = if segment_base::instructions_allowed() {
        &[Way::SystemCall, Way::Instruction]
    } else {
        context.note("the FSGSBASE instructions are not offered");
        &[Way::SystemCall]
    };
    for register in [Register::Fs, Register::Gs] {
        for way in ways {
            keeps(register, *way, 0x1234_5678_9abc_def0)?;
        }
    }
    compete(ways)?;
    set_and_left_behind()?;
    Ok(Verdict::Pass)
}

fn keeps(register: Register, way: Way, value: u64) -> Result<()> {
    let marker = AtomicU64::new(value);
    let expected = Reading { base: marker.as_ptr() as u64, word: value };
    let found = hold(register, way, &marker, SPINS);
    ensure!(found == expected, "{register:?} by {way:?}: {found:x?}, expected {expected:x?}");
    Ok(())
}

/// Holders of different bases and one process that never set any share the CPU.
fn compete(ways: &[Way]) -> Result<()> {
    let cases = [Register::Fs, Register::Gs]
        .into_iter()
        .flat_map(|register| ways.iter().map(move |way| (register, *way)));
    let mut children = Vec::new();
    for (index, (register, way)) in cases.enumerate() {
        let body = move || keeps(register, way, 0x5555_0000 + index as u64);
        children.push(Child::spawn(|| repeat(body))?);
    }
    children.push(Child::spawn(|| repeat(gs_is_clear))?);
    children.into_iter().try_for_each(|child| child.expect_exit(0))
}

fn repeat(body: impl Fn() -> Result<()>) -> u8 {
    let start = Instant::now();
    while start.elapsed() < COMPETE {
        if let Err(error) = body() {
            linux_guest::init::say(&format!("# fs_gs_base: {error:#}"));
            return 1;
        }
    }
    0
}

fn gs_is_clear() -> Result<()> {
    match segment_base::gs()? {
        0 => Ok(()),
        base => bail!("GS base is {base:#x} in a process that never set it"),
    }
}

/// A base that a process had when it ended is not seen in the next one.
fn set_and_left_behind() -> Result<()> {
    let setter = || {
        let set = segment_base::set_gs(0x7777_0000);
        u8::from(set.is_err() || segment_base::gs().ok() != Some(0x7777_0000))
    };
    for _ in 0..8 {
        Child::spawn(setter)?.expect_exit(0)?;
        Child::spawn(|| u8::from(gs_is_clear().is_err()))?.expect_exit(0)?;
    }
    gs_is_clear()
}
