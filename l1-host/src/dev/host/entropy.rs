//! Asks a device of the machine for random bytes.
//! May: unsafe, take-frame. Context: boot; run-loop. Input: the machine's device, trusted for what it gives.
#![expect(unsafe_code, reason = "the queue is told of raw memory")]

use super::{
    hal::{self, L1, piece},
    pci::{Doorbell, Signals},
};
use crate::{hw::physmap, memory};
use alloc::string::{String, ToString};
use pv_abi::{
    addr::Hpa,
    virtio::{entropy, feature},
};
use virtio_drivers::{
    queue::VirtQueue,
    transport::{Transport, pci::PciTransport},
};

/// Bytes that are asked for at once.
pub const SEED: usize = 32;
/// Entries of its queue, of which one is used.
const SIZE: usize = 2;

bitflags::bitflags! {
    /// Features that L1 knows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const VERSION_1 = feature::VERSION_1;
    }
}

/// The device.
#[derive(Debug)]
pub struct Source {
    /// It goes when this does.
    _transport: PciTransport,
    queue: VirtQueue<L1, SIZE>,
    doorbell: Doorbell,
    page: Hpa,
    asked: Option<u16>,
}

impl Source {
    /// The device behind `transport`, which is asked for a seed at once.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(mut transport: PciTransport, signals: Signals) -> Result<Self, String> {
        hal::agree(&mut transport, Features::all())?;
        let number = entropy::QUEUE as u16;
        let doorbell = signals.doorbell(number)?;
        let mut queue =
            VirtQueue::new(&mut transport, number, false, false).map_err(|why| why.to_string())?;
        // It is looked at when a seed is wanted.
        queue.set_dev_notify(false);
        transport.finish_init();
        let page = memory::take_pages(1, 4096).ok_or("L1 has too little memory")?;
        let mut source = Self { _transport: transport, queue, doorbell, page, asked: None };
        source.ask();
        Ok(source)
    }

    fn ask(&mut self) {
        // SAFETY: the page is this device's for ever, and L1 reads it only when the device has given it back.
        let added = unsafe { self.queue.add(&[], &mut [piece(self.page, SEED)]) };
        self.asked = added.ok();
        hal::tell(&self.queue, self.doorbell);
    }

    /// A seed that nobody else has, if the device has given one; it is asked for the next then.
    pub fn take(&mut self) -> Option<[u8; SEED]> {
        let token = self.asked.filter(|_| self.queue.can_pop())?;
        // SAFETY: this is the buffer of `ask`.
        let len = unsafe { self.queue.pop_used(token, &[], &mut [piece(self.page, SEED)]) };
        let mut seed = [0; SEED];
        physmap::copy_from_frame(self.page, 0, &mut seed);
        physmap::zero(self.page, 4096);
        self.ask();
        (len == Ok(SEED as u32)).then_some(seed)
    }
}
