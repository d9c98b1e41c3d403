//! Checks that time goes forward and sleeps are long enough.

use crate::check::{Context, Verdict};
use anyhow::{Result, bail, ensure};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use nix::time::{ClockId, clock_gettime};
use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How long threads compare their clocks.
const COMPARE: Duration = Duration::from_secs(2);
/// How long to sleep, how often.
const SLEEP: (Duration, usize) = (Duration::from_millis(10), 10);
/// The start of 2025, in seconds since 1970.
const YEAR_2025: u64 = 1_735_689_600;

/// Three threads never see time before one that another has seen.
pub fn run(context: &Context) -> Result<Verdict> {
    let latest = AtomicU64::new(0);
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| follow(&latest))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("panic"))).collect()
    });
    results.into_iter().collect::<Result<()>>()?;

    for _ in 0..SLEEP.1 {
        let start = Instant::now();
        thread::sleep(SLEEP.0);
        let slept = start.elapsed();
        ensure!(slept >= SLEEP.0, "a sleep of {:?} took {slept:?}", SLEEP.0);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    if now < YEAR_2025 {
        context.note(format!("the wall clock says {now}, before 2025"));
    }
    Ok(Verdict::Pass)
}

fn follow(latest: &AtomicU64) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < COMPARE {
        for _ in 0..100 {
            let seen = latest.load(SeqCst);
            let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos() as u64;
            ensure!(now >= seen, "a thread read {now} after another had read {seen}");
            latest.fetch_max(now, SeqCst);
        }
    }
    Ok(())
}
