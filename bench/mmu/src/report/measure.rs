//! Measures, on idle cores only: what was taken while others used them is thrown away.

use super::{Choice, Cost, Curve, Machine, Point, Results, sets};
use crate::{
    baselines::{OneMutex, ReaderWriter},
    choices,
    design::Roost,
    ops::{self, Runner},
    threads::{Distance, Idle, ParallelLoop, Rounds},
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    time::{Duration, Instant},
};

/// How the measurements are made.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The most threads.
    pub threads: usize,
    /// Batches of an operation, whose median counts.
    pub batches: usize,
    /// How long a batch takes at least.
    pub batch: Duration,
    /// Passes over each set of threads, whose median counts.
    pub passes: usize,
    /// Rounds of a pass.
    pub rounds: usize,
    /// What shows that the cores are there to measure on.
    pub cores: Cores,
    /// How long one measurement waits for them.
    pub patience: Duration,
}

/// What shows that nobody else uses the cores. The parallel loop, before and after, does in any
/// case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// The kernel's account, too.
    Idle,
    /// Nothing more: the threads may have been given priority over others.
    Any,
}

/// How long the cores are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// The parallel loop must come this close to the number of threads.
const PARALLEL: f64 = 0.95;
/// Operations that take longer than this are not put into larger batches.
const MOST: u64 = 1 << 24;

/// Takes measurements and keeps account of their circumstances.
struct Meter {
    plan: Plan,
    counts: Vec<usize>,
    busiest: f64,
    parallel: Vec<f64>,
    /// Of a cache line between two cores: the last, and the least and the most.
    last_transfer: Option<f64>,
    transfer: Option<[f64; 2]>,
    repeated: usize,
    /// When the patience ends; put off by every measurement that succeeds.
    deadline: Instant,
}

/// Measures everything. `tell` is called with what comes next.
///
/// # Errors
/// The cores were never idle.
pub fn measure(plan: Plan, tell: impl Fn(&str)) -> Result<Results> {
    let mut meter = Meter {
        plan,
        counts: counts(plan.threads),
        busiest: 0.0,
        parallel: Vec::new(),
        last_transfer: None,
        transfer: None,
        repeated: 0,
        deadline: Instant::now(),
    };
    let costs = meter.costs(&tell)?;
    let curves = meter.curves(&tell)?;
    let choices = meter.choices(&tell)?;
    let worst = meter.parallel.iter().copied().fold(f64::INFINITY, f64::min);
    let machine = Machine {
        processor: processor()?,
        threads: meter.counts,
        busiest: meter.busiest,
        parallel: [worst, median(meter.parallel)],
        transfer: meter.transfer,
        repeated: meter.repeated,
    };
    Ok(Results { machine, costs, curves, choices })
}

/// Powers of two up to `most`, and `most`.
fn counts(most: usize) -> Vec<usize> {
    let mut counts: Vec<usize> =
        std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n < most).collect();
    counts.push(most);
    counts
}

impl Meter {
    /// Takes `measurement` on idle cores, again if they were not idle throughout. It is given the
    /// parallel loop's speedup for each number of threads.
    fn undisturbed<T>(&mut self, mut measurement: impl FnMut(&[f64]) -> T) -> Result<T> {
        self.deadline = Instant::now() + self.plan.patience;
        loop {
            let before = self.idle()?;
            let transfer = self.transfer();
            let loops = self.parallel_loop();
            let taken = measurement(&loops);
            let after = self.parallel_loop();
            let most = self.plan.threads as f64;
            let worst = [&loops, &after].map(|l| l[l.len() - 1]).into_iter().fold(most, f64::min);
            if worst >= PARALLEL * most {
                self.busiest = before.busy.iter().copied().fold(self.busiest, f64::max);
                self.parallel.push(worst);
                self.note_transfer(transfer);
                return Ok(taken);
            }
            self.repeated += 1;
            if Instant::now() > self.deadline {
                bail!(
                    "{most} threads of arithmetic run {worst:.2} times as fast as one: other \
                     programs use the cores; end them, or wait longer (--patience)"
                );
            }
        }
    }

    /// Waits for idle cores.
    fn idle(&self) -> Result<Idle> {
        loop {
            let idle = Idle::look(self.plan.threads, LOOK)?;
            let Some(busy) = idle.trouble().filter(|_| self.plan.cores == Cores::Idle) else {
                return Ok(idle);
            };
            if Instant::now() > self.deadline {
                bail!(
                    "core {} is {:.0} % busy with other programs; end them, wait longer \
                     (--patience), or give this one priority and pass --busy",
                    busy.core,
                    100.0 * busy.part
                );
            }
        }
    }

    /// Nanoseconds that a cache line takes between two cores, if there are two.
    fn transfer(&self) -> Option<f64> {
        let two = self.plan.threads >= 2;
        two.then(|| 1e9 / median(Distance::default().rates(2, 9).swap_remove(0)))
    }

    fn note_transfer(&mut self, taken: Option<f64>) {
        self.last_transfer = taken;
        if let Some(taken) = taken {
            let [least, most] = self.transfer.unwrap_or([taken; 2]);
            self.transfer = Some([least.min(taken), most.max(taken)]);
        }
    }

    fn parallel_loop(&self) -> Vec<f64> {
        let rate = |threads| median(ParallelLoop.rates(threads, 9).swap_remove(0));
        let one = rate(1);
        self.counts.iter().map(|&threads| rate(threads) / one).collect()
    }

    fn costs(&mut self, tell: &impl Fn(&str)) -> Result<Vec<Cost>> {
        let columns = [
            ops::operations::<Roost>(),
            ops::operations::<OneMutex>(),
            ops::operations::<ReaderWriter>(),
        ];
        let mut costs = Vec::new();
        for row in 0..columns[0].len() {
            let operation = columns[0][row];
            tell(operation.name);
            let mut nanoseconds = [0.0; 3];
            for (column, cost) in columns.iter().zip(&mut nanoseconds) {
                let mut runner = (column[row].make)();
                let (plan, n) = (self.plan, batch_size(&mut runner, self.plan.batch));
                *cost = self.undisturbed(|_| {
                    let times = (0..plan.batches).map(|_| runner(n).as_nanos() as f64 / n as f64);
                    median(times.collect())
                })?;
            }
            costs.push(Cost { name: operation.name, what: operation.what, nanoseconds });
        }
        Ok(costs)
    }

    fn curves(&mut self, tell: &impl Fn(&str)) -> Result<Vec<Curve>> {
        let mut curves = Vec::new();
        for set in sets::sets() {
            tell(set.name);
            let works = (set.make)(self.plan.threads);
            // [design][pass][phase][count]
            let mut passes: [Vec<[Vec<Point>; 2]>; 3] = Default::default();
            let mut transfers: [Vec<f64>; 3] = Default::default();
            let (counts, rounds) = (self.counts.clone(), self.plan.rounds);
            for _ in 0..self.plan.passes {
                for (design, work) in works.iter().enumerate() {
                    let taken = self.undisturbed(|loops| pass(&**work, &counts, rounds, loops))?;
                    passes[design].push(taken);
                    transfers[design].extend(self.last_transfer);
                }
            }
            let transfer = self.last_transfer.map(|_| transfers.map(median));
            for (phase, operation) in set.operations.into_iter().enumerate() {
                let points = std::array::from_fn(|design| {
                    let of = |count: usize, f: fn(&Point) -> f64| {
                        let taken = passes[design].iter();
                        median(taken.map(|pass| f(&pass[phase][count])).collect())
                    };
                    let point = |(count, &threads)| Point {
                        threads,
                        rate: of(count, |p| p.rate),
                        speedup: of(count, |p| p.speedup),
                        relative: of(count, |p| p.relative),
                    };
                    self.counts.iter().enumerate().map(point).collect()
                });
                curves.push(Curve { set: set.name, operation, transfer, points });
            }
        }
        Ok(curves)
    }

    fn choices(&mut self, tell: &impl Fn(&str)) -> Result<Vec<Choice>> {
        let mut choices = Vec::new();
        for alternative in choices::alternatives() {
            tell(alternative.name);
            let work = (alternative.make)(self.plan.threads);
            let (counts, plan) = (self.counts.clone(), self.plan);
            let mut passes = Vec::new();
            for _ in 0..plan.passes {
                passes.push(self.undisturbed(|_| -> Vec<f64> {
                    let rate = |&threads| {
                        let rates = work.rates(threads, plan.rounds).swap_remove(0);
                        1e9 * threads as f64 / median(rates)
                    };
                    counts.iter().map(rate).collect()
                })?);
            }
            let nanoseconds = (0..self.counts.len())
                .map(|count| median(passes.iter().map(|pass| pass[count]).collect()))
                .collect();
            choices.push(Choice { part: alternative.part, name: alternative.name, nanoseconds });
        }
        Ok(choices)
    }
}

/// One pass over the work of a design: `[phase][count]`.
fn pass(work: &dyn Rounds, counts: &[usize], rounds: usize, loops: &[f64]) -> [Vec<Point>; 2] {
    let mut points: [Vec<Point>; 2] = Default::default();
    for (&threads, &parallel) in counts.iter().zip(loops) {
        for (curve, rates) in points.iter_mut().zip(work.rates(threads, rounds)) {
            let rate = median(rates) / 1e6;
            let speedup = curve.first().map_or(1.0, |one| rate / one.rate);
            let relative = speedup / parallel * threads as f64;
            curve.push(Point { threads, rate, speedup, relative });
        }
    }
    points
}

/// How many operations take `time` or more.
fn batch_size(runner: &mut Runner, time: Duration) -> u64 {
    let mut n = 1;
    while runner(n) < time && n < MOST {
        n *= 2;
    }
    n
}

/// The value in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The processor's name for itself.
fn processor() -> Result<String> {
    let place = "/proc/cpuinfo";
    let text = fs::read_to_string(place).with_context(|| format!("cannot read {place}"))?;
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map_or("unknown", |(_, name)| name);
    Ok(name.trim().to_owned())
}
