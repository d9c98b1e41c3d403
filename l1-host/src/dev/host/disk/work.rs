//! What a disk is asked, by whom, and how it ends.
//! May: alloc. Context: run-loop, irq-off. Input: none.

use super::requests::REQUESTS;
use crate::{dev::virtio::block::Kind, vm::Vm};
use alloc::{sync::Weak, vec::Vec};
use arrayvec::ArrayVec;
use pv_abi::addr::{Gfn, Hpa};

/// RAM without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it starts.
    pub start: Hpa,
    /// Its bytes, not 0.
    pub len: u32,
}

/// What is to be done.
#[derive(Debug)]
pub struct Work {
    /// What.
    pub kind: Kind,
    /// Where on the disk.
    pub sector: u64,
    /// Where in memory, [`super::PIECES`] at most. It is not given away before the answer is there.
    pub runs: Vec<Run>,
    /// How much of the disk, where nothing is moved.
    pub sectors: u32,
}

/// Who asked: it is given back with the answer.
#[derive(Debug)]
pub struct Ticket {
    /// The guest.
    pub vm: Weak<Vm>,
    /// The slot of its device.
    pub slot: usize,
    /// The queue.
    pub queue: usize,
    /// The chain.
    pub head: u16,
    /// Where its answer goes.
    pub answer: u64,
    /// Bytes of guest memory that are written if it succeeds.
    pub written: u32,
    /// Pages that the device keeps from being converted.
    pub pages: Vec<Gfn>,
}

/// A device whose request was [`Refused::Full`].
#[derive(Clone, Debug)]
pub struct Waiter {
    /// The guest.
    pub vm: Weak<Vm>,
    /// The slot of its device.
    pub slot: usize,
}

/// How a request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It failed.
    Failed,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are too many. When there is room, the device is told ([`Answers`]).
    Full,
    /// The disk has failed.
    Failed,
}

/// What was taken at once.
#[derive(Debug, Default)]
pub struct Answers {
    /// How requests have ended.
    pub ended: ArrayVec<(Ticket, Outcome), REQUESTS>,
    /// Devices for whose requests there is room now.
    pub room: Vec<Waiter>,
}
