//! Checks that signals come and leave no register changed.

use super::hashing::split_mix;
use crate::{
    check::{Context, Verdict},
    sys::{alarm::alarm_every, registers},
};
use anyhow::{Context as _, Result, ensure};
use std::time::{Duration, Instant};

/// 1 kHz.
const PERIOD: Duration = Duration::from_millis(1);
/// How long to compute under the storm.
const COMPUTE: Duration = Duration::from_millis(500);
/// More rounds than any machine makes while it waits for the signals.
const ROUNDS: u64 = 1 << 40;

/// A timer signal a thousand times per second, while registers are held and numbers computed.
pub fn storm(context: &Context) -> Result<Verdict> {
    registers::catch(libc::SIGALRM)?;
    let signals = context.factor.of(1000);
    alarm_every(PERIOD)?;
    registers::spin(signals, ROUNDS).context("while spinning")?;
    registers::await_signals(0);
    let start = Instant::now();
    let mut pieces = Vec::new();
    while start.elapsed() < COMPUTE {
        pieces.push(compute(pieces.len() as u64));
    }
    let came = -registers::awaited();
    alarm_every(Duration::ZERO)?;
    context.note(format!("{came} signals in {} ms of computing", start.elapsed().as_millis()));
    ensure!(came > 0, "no signal came while computing");
    for (index, piece) in pieces.iter().enumerate() {
        ensure!(compute(index as u64) == *piece, "piece {index} differs without signals");
    }
    Ok(Verdict::Pass)
}

/// Integer and floating-point work with one result.
fn compute(seed: u64) -> (u64, u64) {
    let (mut state, mut sum) = (seed, 0.5_f64);
    for _ in 0..20_000 {
        let number = split_mix(&mut state) >> 11;
        sum = (sum + (number as f64).sqrt()) * 0.999;
    }
    (state, sum.to_bits())
}

/// 10,000 signals by `tgkill`.
pub fn registers(context: &Context) -> Result<Verdict> {
    registers::catch(libc::SIGUSR1)?;
    registers::send_to_self(libc::SIGUSR1, context.factor.of(10_000))?;
    Ok(Verdict::Pass)
}
