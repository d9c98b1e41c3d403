//! Tells whether the machine has its cores to itself, from the kernel's account of their time.

use anyhow::{Context, Result};
use std::{fs, time::Duration};

/// A core counts as idle if others use less than this part of it.
const NOISE: f64 = 0.03;
/// Kinds of time in a line of the account: user, nice, system, idle, iowait, irq, softirq, steal.
const KINDS: usize = 8;
const IDLE: [usize; 2] = [3, 4];

/// A core is busy.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    /// Which.
    pub core: usize,
    /// The part of its time that others had.
    pub part: f64,
}

/// What the cores did while this program slept.
#[derive(Clone, Debug)]
pub struct Idle {
    /// The part of each core's time that somebody used.
    pub busy: Vec<f64>,
}

impl Idle {
    /// Sleeps for `time` and looks at what the first `cores` cores did meanwhile.
    ///
    /// # Errors
    /// The account cannot be read.
    pub fn look(cores: usize, time: Duration) -> Result<Self> {
        let before = account()?;
        std::thread::sleep(time);
        let after = account()?;
        let busy = before.iter().zip(&after).take(cores).map(|(before, after)| {
            let spent: Vec<u64> =
                after.iter().zip(before).map(|(a, b)| a.saturating_sub(*b)).collect();
            let idle: u64 = IDLE.iter().map(|&kind| spent[kind]).sum();
            let all: u64 = spent.iter().sum();
            if all == 0 { 0.0 } else { 1.0 - idle as f64 / all as f64 }
        });
        Ok(Self { busy: busy.collect() })
    }

    /// The busiest core, if it is too busy to measure on.
    #[must_use]
    pub fn trouble(&self) -> Option<Busy> {
        self.busy
            .iter()
            .enumerate()
            .map(|(core, &part)| Busy { core, part })
            .filter(|busy| busy.part > NOISE)
            .max_by(|a, b| a.part.total_cmp(&b.part))
    }
}

/// The kernel's account, one line a core.
fn account() -> Result<Vec<[u64; KINDS]>> {
    let place = "/proc/stat";
    let text = fs::read_to_string(place).with_context(|| format!("cannot read {place}"))?;
    let cores = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    cores
        .map(|line| {
            let mut kinds = [0; KINDS];
            for (kind, word) in kinds.iter_mut().zip(line.split_whitespace().skip(1)) {
                *kind = word.parse().with_context(|| format!("{place}: what is {word:?}?"))?;
            }
            Ok(kinds)
        })
        .collect()
}
