//! What is asked of the MMU, and whether it is met.

use super::{
    MUTEX, Point, ROOST, Results,
    memory::Memory,
    sets::{FAULT, OWN_TABLES, SAME_TABLES},
};

/// A figure with its bound.
#[derive(Clone, Debug)]
pub struct Target {
    /// What is asked.
    pub what: String,
    /// The bound.
    pub bound: Bound,
    /// What was measured.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

/// A bound on a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Target {
    /// True if the figure is within its bound.
    #[must_use]
    pub fn met(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.value <= most,
            Bound::AtLeast(least) => self.value >= least,
        }
    }
}

/// All targets that `results` can tell about.
#[must_use]
pub fn targets(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |what: String, bound, value: Option<f64>, unit| {
        if let Some(value) = value {
            targets.push(Target { what, bound, value, unit });
        }
    };
    let fill = results.cost("fill");
    let fill_cost = fill.map(|cost| cost.nanoseconds[ROOST]);
    add("a fill, one thread".into(), Bound::AtMost(250.0), fill_cost, "ns");
    for (set, least) in [(OWN_TABLES, 1.8), (SAME_TABLES, 1.5)] {
        let two = two(results, set, ROOST);
        let what = format!("faults in {set}, two threads to one, by the parallel loop");
        add(what, Bound::AtLeast(least), two.map(|point| point.relative), "x");
    }
    for set in [OWN_TABLES, SAME_TABLES] {
        let [roost, mutex] = [ROOST, MUTEX].map(|design| two(results, set, design));
        let ratio = roost.zip(mutex).map(|(roost, mutex)| roost.rate / mutex.rate);
        let what = format!("faults in {set}, two threads, to the mutex");
        add(what, Bound::AtLeast(1.7), ratio, "x");
    }
    let ratio = fill.map(|cost| cost.nanoseconds[MUTEX] / cost.nanoseconds[ROOST]);
    add("a fill, one thread, to the mutex".into(), Bound::AtLeast(1.0), ratio, "x");
    let memory = Memory::of_roost();
    let per_page = memory.per_page as f64;
    add("records per shadow page".into(), Bound::AtMost(64.0), Some(per_page), "bytes");
    let per_leaf = Some(memory.per_leaf(2));
    add("records per leaf, frames mapped twice".into(), Bound::AtMost(8.0), per_leaf, "bytes");
    targets
}

/// A design's faults on two threads.
fn two(results: &Results, set: &str, design: usize) -> Option<Point> {
    let curve = results.curve(set, FAULT)?;
    curve.points[design].iter().copied().find(|point| point.threads == 2)
}
