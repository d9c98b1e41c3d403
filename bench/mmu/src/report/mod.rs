//! What a run of the tool measures, and what becomes of it.

pub mod markdown;
pub mod measure;
pub mod memory;
pub mod plot;
pub mod sets;
pub mod targets;

use serde::Serialize;

/// Names of the MMUs, in the order of all tables.
pub const DESIGNS: [&str; 3] = {
    use crate::{
        baselines::{OneMutex, ReaderWriter},
        design::{Design, Roost},
    };
    [Roost::NAME, OneMutex::NAME, ReaderWriter::NAME]
};
/// Index of Roost's, and of the mutex's, in [`DESIGNS`].
pub const ROOST: usize = 0;
/// See [`ROOST`].
pub const MUTEX: usize = 1;

/// What an operation costs on one vCPU.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Short name.
    pub name: &'static str,
    /// What one operation is.
    pub what: &'static str,
    /// Median nanoseconds, by design.
    pub nanoseconds: [f64; 3],
}

/// A design on so many threads.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    /// Threads.
    pub threads: usize,
    /// Million operations a second, all threads together.
    pub rate: f64,
    /// Rate by that of one thread.
    pub speedup: f64,
    /// Speedup by that of the parallel loop, times the threads: what it would be on perfect cores.
    pub relative: f64,
}

/// How an operation scales.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// What the threads share.
    pub set: &'static str,
    /// The operation.
    pub operation: &'static str,
    /// Median nanoseconds that a cache line took between two cores meanwhile, by design.
    pub transfer: Option<[f64; 3]>,
    /// By design, by number of threads.
    pub points: [Vec<Point>; 3],
}

/// One way to build a part of the MMU.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// The part.
    pub part: &'static str,
    /// The way.
    pub name: &'static str,
    /// Nanoseconds per operation and thread, by number of threads.
    pub nanoseconds: Vec<f64>,
}

/// The machine, and how much of it the run had.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Its processor.
    pub processor: String,
    /// Numbers of threads that were measured.
    pub threads: Vec<usize>,
    /// The most that others used of a core before a measurement, a part of 1.
    pub busiest: f64,
    /// Speedup of the parallel loop with the most threads: the worst, and the median.
    pub parallel: [f64; 2],
    /// Nanoseconds that a cache line took between the first two cores: the least and the most.
    pub transfer: Option<[f64; 2]>,
    /// Measurements thrown away because the cores were not idle.
    pub repeated: usize,
}

/// Everything measured.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Where.
    pub machine: Machine,
    /// One vCPU.
    pub costs: Vec<Cost>,
    /// Several.
    pub curves: Vec<Curve>,
    /// Parts and their alternatives.
    pub choices: Vec<Choice>,
}

impl Results {
    /// The curve of `operation` in `set`.
    #[must_use]
    pub fn curve(&self, set: &str, operation: &str) -> Option<&Curve> {
        self.curves.iter().find(|curve| curve.set == set && curve.operation == operation)
    }

    /// The cost of an operation.
    #[must_use]
    pub fn cost(&self, name: &str) -> Option<&Cost> {
        self.costs.iter().find(|cost| cost.name == name)
    }
}
