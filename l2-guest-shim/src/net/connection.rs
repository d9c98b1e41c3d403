//! A connection: both halves of a card that a front end uses.
//! May: nothing. Context: shim. Input: guest-controlled.

use super::{
    nodes::Asked,
    receive::{self, Receive},
    transmit::{self, Cuts, Transmit},
};
use crate::{grants::Grants, guest_memory::Memory, virtio::device::Setup};
use pv_abi::virtio::net::{RECEIVE, TRANSMIT};

/// Bytes that a connection needs for queues and headers.
pub const SIZE: u64 = receive::SIZE + transmit::SIZE;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Frames for the front end.
    pub receive: Receive,
    /// Frames that it sends.
    pub transmit: Transmit,
}

impl Connection {
    /// A connection over the rings of `asked`, to a device that is to use the queues in the [`SIZE`]
    /// bytes at `base`. `None` if the rings are not granted.
    pub fn new(
        memory: &impl Memory,
        grants: Grants,
        cuts: Cuts,
        asked: &Asked,
        base: u64,
    ) -> Option<Self> {
        let mut receive = Receive::new(memory, grants, asked.receive.ring, base)?;
        let base = base + receive::SIZE;
        match Transmit::new(memory, grants, cuts, asked.transmit.ring, base) {
            Some(transmit) => Some(Self { receive, transmit }),
            None => {
                receive.close(memory);
                None
            }
        }
    }

    /// The device's queues.
    #[must_use]
    pub const fn setups(&self) -> [Setup; 2] {
        let mut setups = [(0, [0; 3]); 2];
        setups[RECEIVE] = self.receive.setup();
        setups[TRANSMIT] = self.transmit.setup();
        setups
    }

    /// Gives all pages back. The device must have been reset.
    pub fn close(&mut self, memory: &impl Memory) {
        self.receive.close(memory);
        self.transmit.close(memory);
    }
}
