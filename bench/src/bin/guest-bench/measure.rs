//! Runs a row in batches and reports the cost of one operation.

use crate::{
    rows::Row,
    sys::{counters, cpu::Moment, memory::Region},
};
use bench_report::lines::{self, Counts, Reading};
use linux_guest::{init::say, words::Words};

/// Operations of one batch, at most.
const MOST: u64 = 1 << 30;
/// Batches, at most.
const BATCHES: usize = 64;

/// Adds up the time that operations take, without their preparation.
#[derive(Debug, Default)]
pub struct Stopwatch {
    tsc: u64,
    ns: u64,
}

impl Stopwatch {
    /// Runs `body` and adds the time it takes.
    #[inline(always)]
    pub fn time<T>(&mut self, body: impl FnOnce() -> T) -> T {
        let start = Moment::now();
        let result = body();
        self.add(start.until_now());
        result
    }

    /// Adds a time taken elsewhere: ticks and nanoseconds.
    pub fn add(&mut self, (tsc, ns): (u64, u64)) {
        self.tsc += tsc;
        self.ns += ns;
    }

    /// Subtracts time that is not the operation's.
    pub fn deduct_ns(&mut self, ns: u64) {
        self.ns = self.ns.saturating_sub(ns);
    }
}

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    target_ns: u64,
    batches: usize,
    count: bool,
}

impl Plan {
    /// Reads the plan's words.
    ///
    /// # Errors
    /// A value makes no sense.
    pub fn new(words: &Words) -> Result<Self, String> {
        let batches = words.number("batches", 9)?;
        if !(1..=BATCHES).contains(&batches) {
            return Err(format!("batches={batches} is not between 1 and {BATCHES}"));
        }
        let target: u64 = words.number("target", 5000)?;
        if !(1..=10_000_000).contains(&target) {
            return Err(format!("target={target} is not between 1 and 10000000 microseconds"));
        }
        Ok(Self { target_ns: target * 1000, batches, count: words.get("count").is_some() })
    }

    /// Whether L1's counters are read.
    pub const fn counts(&self) -> bool {
        self.count
    }
}

/// Measures a row and prints it.
///
/// # Errors
/// Why it cannot be measured here.
pub fn row(row: &Row, plan: &Plan) -> Result<(), String> {
    let mut operation = (row.prepare)()?;
    let mut batch = |n| {
        let mut watch = Stopwatch::default();
        operation(n, &mut watch);
        watch
    };
    let n = batch_size(&mut batch, plan.target_ns, row.most.unwrap_or(MOST));
    // The first batch of this size pays for what the others find prepared.
    batch(n);
    if plan.count {
        let before = counters::read();
        batch(n);
        let counts = counters::since(&before);
        say(&format!("\n{}", lines::counts(&Counts { name: row.name.into(), n, counts })));
        return Ok(());
    }
    let (mut tsc, mut ns) = (Vec::new(), Vec::new());
    for _ in 0..plan.batches {
        let watch = batch(n);
        tsc.push(watch.tsc as f64 / n as f64);
        ns.push(watch.ns as f64 / n as f64);
    }
    let (min_tsc, med_tsc) = min_and_median(&mut tsc);
    let (min_ns, med_ns) = min_and_median(&mut ns);
    let reading = Reading { name: row.name.into(), n, min_tsc, med_tsc, min_ns, med_ns };
    say(&format!("\n{}", lines::reading(&reading)));
    Ok(())
}

/// How many operations take about `target` nanoseconds.
fn batch_size(batch: &mut impl FnMut(u64) -> Stopwatch, target: u64, most: u64) -> u64 {
    let mut n = 1;
    loop {
        let took = batch(n).ns.max(1);
        if took >= target / 2 || n >= most {
            let exact = n as f64 * target as f64 / took as f64;
            return (exact as u64 + 1).min(most);
        }
        // Far away: larger steps.
        n = (n * if took < target / 20 { 8 } else { 2 }).min(most);
    }
}

fn min_and_median(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2])
}

/// Touches memory that the kernel may never have used, twice.
///
/// # Errors
/// There is not that much memory.
pub fn cold(pages: u64) -> Result<(), String> {
    for name in ["pf_cold", "pf_cold_second_pass"] {
        let region = Region::new(pages).map_err(|error| error.to_string())?;
        let mut watch = Stopwatch::default();
        watch.time(|| region.touch_all());
        let (tsc, ns) = (watch.tsc as f64 / pages as f64, watch.ns as f64 / pages as f64);
        let reading = Reading {
            name: name.into(),
            n: pages,
            min_tsc: tsc,
            med_tsc: tsc,
            min_ns: ns,
            med_ns: ns,
        };
        say(&format!("\n{}", lines::reading(&reading)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_reach_the_target() {
        let mut calls = 0;
        let mut batch = |n: u64| {
            calls += 1;
            Stopwatch { tsc: 0, ns: n * 7 }
        };
        let n = batch_size(&mut batch, 1_000_000, MOST);
        assert!((900_000..1_100_000).contains(&(n * 7)), "{n}");
        assert_eq!(batch_size(&mut batch, 1_000_000, 10), 10);
        assert!(calls < 20);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(min_and_median(&mut [3.0, 1.0, 2.0]), (1.0, 2.0));
    }
}
