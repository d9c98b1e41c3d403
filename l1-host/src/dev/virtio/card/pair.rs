//! A pair of a network card's queues: what it needs to send, and how many frames it had.
//! May: alloc. Context: run-loop, irq-off.

use crate::dev::{
    switch::segment::LONGEST_SEGMENT,
    virtio::{net::SCRATCH, queue::Chain},
};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use pv_abi::ext::devices::CARD_PAIRS_MOST;
use spin::Mutex;

/// Names of the counters of frames, by pairs of queues.
const SENT: [&str; CARD_PAIRS_MOST] =
    ["net_tx_queue_0", "net_tx_queue_1", "net_tx_queue_2", "net_tx_queue_3"];
const RECEIVED: [&str; CARD_PAIRS_MOST] =
    ["net_rx_queue_0", "net_rx_queue_1", "net_rx_queue_2", "net_rx_queue_3"];

/// A pair.
#[derive(Debug)]
pub struct Pair {
    /// Whoever sends by it holds this.
    pub sending: Mutex<Sending>,
    /// Frames that were taken of it, and put there, where there are several pairs.
    pub sent: AtomicU64,
    /// See above.
    pub received: AtomicU64,
}

/// What is being sent.
#[derive(Debug)]
pub struct Sending {
    /// Where the frame is in the guest's memory.
    pub chain: Box<Chain>,
    /// The frame, its header first.
    pub scratch: Box<[u8]>,
    /// Its segments, one after another.
    pub segment: Box<[u8]>,
}

impl Pair {
    /// One that is not used yet.
    #[must_use]
    pub fn new() -> Self {
        let sending = Sending {
            chain: Box::default(),
            scratch: alloc::vec![0; SCRATCH].into(),
            segment: alloc::vec![0; LONGEST_SEGMENT].into(),
        };
        Self { sending: Mutex::new(sending), sent: AtomicU64::new(0), received: AtomicU64::new(0) }
    }
}

/// How many frames were in each of `pairs`, with the counters' names.
pub fn counters(pairs: &[Pair]) -> impl Iterator<Item = (&'static str, u64)> + '_ {
    let sent = SENT.iter().zip(pairs.iter().map(|pair| &pair.sent));
    let received = RECEIVED.iter().zip(pairs.iter().map(|pair| &pair.received));
    let counted = sent.chain(received).map(|(&name, count)| (name, count.load(Relaxed)));
    counted.filter(|(_, count)| *count > 0)
}
