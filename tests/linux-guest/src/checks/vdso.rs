//! Checks the vDSO against the system calls that it stands for.

use crate::{
    check::{Context, Verdict},
    pinning,
    sys::{child::Child, clock, seccomp},
};
use anyhow::{Result, bail, ensure};
use linux_guest::vdso::{ClockGettime, Getcpu, Vdso};

/// How far the two ways to read the clock may be apart: a system call's time, seen generously.
const APART: u64 = 1_000_000;
/// Tries to get a reading that no other process or host disturbed.
const TRIES: usize = 100;

/// Clock and CPU number.
pub fn run(context: &Context) -> Result<Verdict> {
    let Some(vdso) = Vdso::find()? else { return Verdict::skip("the kernel gives no vDSO") };
    let (clock, getcpu) = (vdso.clock_gettime()?, vdso.getcpu()?);
    runs_forward(clock, context.factor.of(1_000_000))?;
    agrees(clock)?;
    for cpu in pinning::allowed()?.into_iter().take(8) {
        pinning::to(cpu)?;
        let found = (clock::cpu_by_vdso(getcpu)?, clock::cpu_by_system_call()?);
        ensure!(found == (cpu as u32, cpu as u32), "on CPU {cpu}, (vDSO, call) say {found:?}");
    }
    let (clock, getcpu) = avoids_calls(clock, getcpu)?;
    context.note(format!("without a system call: clock_gettime {clock}, getcpu {getcpu}"));
    Ok(Verdict::Pass)
}

fn runs_forward(clock: ClockGettime, count: u64) -> Result<()> {
    let mut last = 0;
    for _ in 0..count {
        let now = clock::by_vdso(clock)?;
        ensure!(now >= last, "the clock went back from {last} to {now}");
        last = now;
    }
    Ok(())
}

/// A vDSO reading lies between two readings by system call, and these are close together.
fn agrees(clock: ClockGettime) -> Result<()> {
    for _ in 0..TRIES {
        let before = clock::by_system_call()?;
        let between = clock::by_vdso(clock)?;
        let after = clock::by_system_call()?;
        ensure!(
            (before..=after).contains(&between),
            "the vDSO says {between} between {before} and {after}"
        );
        if after - before < APART {
            return Ok(());
        }
    }
    bail!("no two readings within {APART} ns of each other in {TRIES} tries")
}

/// Whether the functions still work where their system calls fail.
fn avoids_calls(clock: ClockGettime, getcpu: Getcpu) -> Result<(bool, bool)> {
    const FAILED: i32 = 1;
    let child = Child::spawn(|| {
        if seccomp::refuse(&[libc::SYS_clock_gettime, libc::SYS_getcpu], libc::EPERM as u16)
            .is_err()
        {
            return FAILED as u8;
        }
        let yes = (clock::by_vdso(clock).is_ok(), clock::cpu_by_vdso(getcpu).is_ok());
        0x10 | u8::from(yes.0) << 1 | u8::from(yes.1) << 2
    })?;
    match child.wait()? {
        nix::sys::wait::WaitStatus::Exited(_, status) if status & 0x10 != 0 => {
            Ok((status & 2 != 0, status & 4 != 0))
        }
        other => bail!("system calls cannot be filtered: {other:?}"),
    }
}
