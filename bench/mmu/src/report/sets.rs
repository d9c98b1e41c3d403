//! What several vCPUs do at once.

use crate::{
    baselines::{OneMutex, ReaderWriter},
    design::Roost,
    threads::{Flushes, Frames, NewTables, Rounds, Sharing, Work},
};

/// Each has a VM to itself: as good as it can get.
pub const OWN_VM: &str = "VMs of their own";
/// One VM, a process each.
pub const OWN_TABLES: &str = "tables of their own";
/// One process.
pub const SAME_TABLES: &str = "the same tables";
/// One process, where each vCPU has frames of its own.
pub const SAME_BATCHES: &str = "the same tables, each its own frames";
/// One process, and neighbouring frames.
pub const SAME_LINES: &str = "the same tables, neighbouring frames";
/// A process each, with flushes in between.
pub const FLUSHING: &str = "tables of their own, a flush every 32 faults";
/// A process each, whose tables come and go.
pub const NEW: &str = "processes that come and go";

/// The operations that are timed.
pub const FAULT: &str = "fault";
/// See [`FAULT`].
pub const ZAP: &str = "zap frame";
const TABLE: &str = "fault, new table";
const DROP: &str = "drop a process, per table";

/// Work of several threads, for each design.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    /// What the threads share.
    pub name: &'static str,
    /// The operations, by phase.
    pub operations: [&'static str; 2],
    /// Builds it for up to so many threads.
    pub make: fn(usize) -> [Box<dyn Rounds>; 3],
}

fn work(sharing: Sharing, flushes: Flushes, threads: usize) -> [Box<dyn Rounds>; 3] {
    [
        Box::new(Work::<Roost>::new(sharing, flushes, threads)),
        Box::new(Work::<OneMutex>::new(sharing, flushes, threads)),
        Box::new(Work::<ReaderWriter>::new(sharing, flushes, threads)),
    ]
}

/// All of them.
#[must_use]
pub fn sets() -> Vec<Set> {
    let faults = |name, make| Set { name, operations: [FAULT, ZAP], make };
    vec![
        faults(OWN_VM, |threads| work(Sharing::Nothing, Flushes::No, threads)),
        faults(OWN_TABLES, |threads| work(Sharing::Mmu, Flushes::No, threads)),
        faults(SAME_TABLES, |threads| {
            work(Sharing::Process(Frames::Shuffled), Flushes::No, threads)
        }),
        faults(SAME_BATCHES, |threads| {
            work(Sharing::Process(Frames::Batches), Flushes::No, threads)
        }),
        faults(SAME_LINES, |threads| {
            work(Sharing::Process(Frames::Neighbours), Flushes::No, threads)
        }),
        faults(FLUSHING, |threads| work(Sharing::Mmu, Flushes::Every(32), threads)),
        Set {
            name: NEW,
            operations: [TABLE, DROP],
            make: |threads| {
                [
                    Box::new(NewTables::<Roost>::new(threads)),
                    Box::new(NewTables::<OneMutex>::new(threads)),
                    Box::new(NewTables::<ReaderWriter>::new(threads)),
                ]
            },
        },
    ]
}
