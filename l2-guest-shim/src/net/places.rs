//! Where the halves of network cards' pairs are, each bridged to a queue, while they are connected.
//! May: nothing. Context: shim, IF = 0.

use super::{device::PAIRS_MOST, receive::Receive, transmit::Transmit};
use crate::{guest::MULTI_CARDS, virtio::slot::Slot};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use pv_abi::ext::devices::SLOTS;
use spin::Mutex;

/// A half of a pair that is connected: how its ring is bridged to queue `queue`.
pub struct Half<T> {
    /// Of its card.
    pub slot: Slot,
    /// See above.
    pub queue: usize,
    /// What moves frames between both.
    pub bridge: T,
    /// The device has been started, and nobody wants to reset it.
    pub open: bool,
}

/// What all vCPUs reach of it.
pub struct Place<T> {
    /// It, while it is connected.
    pub half: Mutex<Option<Half<T>>>,
    /// The port by which the front end is told, and tells.
    pub port: AtomicU32,
    /// The vCPU that is told by the device, or [`NOBODY`].
    pub vcpu: AtomicU32,
}

impl<T> Place<T> {
    const fn new() -> Self {
        Self { half: Mutex::new(None), port: AtomicU32::new(0), vcpu: AtomicU32::new(NOBODY) }
    }

    /// Puts a half there that the device does not use yet.
    pub fn fill(&self, slot: Slot, queue: usize, bridge: T, port: u32, vcpu: u32) {
        *self.half.lock() = Some(Half { slot, queue, bridge, open: false });
        self.port.store(port, SeqCst);
        self.vcpu.store(vcpu, SeqCst);
    }

    /// See [`Half::open`].
    pub fn set_open(&self, open: bool) {
        if let Some(half) = &mut *self.half.lock() {
            half.open = open;
        }
    }

    /// Nobody serves it any more.
    pub fn shut(&self) {
        self.vcpu.store(NOBODY, SeqCst);
        self.port.store(0, SeqCst);
        self.set_open(false);
    }

    /// The device tells this vCPU of it.
    pub fn is_told(&self, vcpu: u32) -> bool {
        self.vcpu.load(SeqCst) == vcpu
    }

    /// Its port is this one.
    pub fn has(&self, port: u32) -> bool {
        self.port.load(SeqCst) == port
    }
}

/// A pair of queues.
pub struct Pair {
    /// Frames for the front end.
    pub receive: Place<Receive>,
    /// Frames that it sends.
    pub transmit: Place<Transmit>,
}

/// No vCPU.
const NOBODY: u32 = u32::MAX;

/// By cards: [`PAIRS_MOST`] for each of the first [`MULTI_CARDS`], one for each other.
static PAIRS: [Pair; ALL] = [const { Pair { receive: Place::new(), transmit: Place::new() } }; ALL];
const ALL: usize = MULTI_CARDS * PAIRS_MOST + (SLOTS - MULTI_CARDS);

/// The pairs that card `index` may have.
pub fn pairs(index: u8) -> &'static [Pair] {
    let index = usize::from(index);
    let (first, count) = match index.checked_sub(MULTI_CARDS) {
        None => (index * PAIRS_MOST, PAIRS_MOST),
        Some(further) => (MULTI_CARDS * PAIRS_MOST + further, 1),
    };
    PAIRS.get(first..first + count).unwrap_or_default()
}
