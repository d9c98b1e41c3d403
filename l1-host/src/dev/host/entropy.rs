//! Asks a device of the machine for random bytes.
//! May: nothing. Context: boot; run-loop. Input: the machine's device, trusted for what it gives.

use super::{
    hal::{self, Plain},
    ring::{Broken, Ring, Way},
    transport::Signals,
};
use crate::hw::physmap;
use alloc::string::String;
use pv_abi::virtio::entropy::QUEUE;
use virtio_drivers::transport::{SomeTransport, Transport};

/// Bytes that are asked for at once.
pub const SEED: usize = 32;
/// Buffers, and bytes of each: a page in all. One is used.
const SIZE: usize = 2;
const BUFFER: usize = 4096 / SIZE;

/// The device.
#[derive(Debug)]
pub struct Source {
    /// It goes when this does.
    _transport: SomeTransport<'static>,
    ring: Ring<SIZE, BUFFER>,
}

impl Source {
    /// The device behind `transport`, which is asked for a seed at once.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(mut transport: SomeTransport<'static>, signals: Signals) -> Result<Self, String> {
        hal::agree(&mut transport, Plain::all())?;
        let mut ring = Ring::new(&mut transport, signals, QUEUE, Way::Receive)?;
        // It is looked at when a seed is wanted.
        ring.set_interrupts(false);
        transport.finish_init();
        let buffer = ring.take_free().ok_or("its queue has no buffer")?;
        let mut source = Self { _transport: transport, ring };
        source.ask(buffer)?;
        Ok(source)
    }

    fn ask(&mut self, buffer: u16) -> Result<(), Broken> {
        self.ring.add(buffer, SEED)?;
        self.ring.tell();
        Ok(())
    }

    /// A seed that nobody else has, if the device has given one; it is asked for the next then.
    pub fn take(&mut self) -> Option<[u8; SEED]> {
        let (buffer, len) = self.ring.take().ok()??;
        let at = self.ring.at(buffer);
        let mut seed = [0; SEED];
        physmap::copy_from_frame(at.page(), at.page_offset() as usize, &mut seed);
        physmap::copy_to_frame(at.page(), at.page_offset() as usize, &[0; SEED]);
        // One that takes no more gives no more.
        let _ = self.ask(buffer);
        (len == SEED).then_some(seed)
    }
}
