//! How a front end and its device come to terms in the store.
//! May: nothing. Context: shim. Input: guest-controlled nodes.
//!
//! Either side has a state in the store and watches the other's. The front end finds its device waiting
//! (2), writes where its ring is, and says so (3); the device connects (4) and the front end follows.
//! What the device is, is in the store from the start. After the front end's end (5, 6) it may begin
//! anew (1).

use super::{device::Properties, request::INDIRECT};
use crate::store::{
    Change, Error, Store, number,
    path::{DOMAIN, is_within},
    short,
};
use core::fmt;

/// Number of the first disk, xvda, and from one to the next.
const FIRST: u32 = 51712;
const STEP: u32 = 16;
/// Bit of "info": the disk may not be written.
const READ_ONLY: u32 = 4;

/// States.
mod state {
    pub const INITIALISING: u32 = 1;
    pub const INIT_WAIT: u32 = 2;
    pub const INITIALISED: u32 = 3;
    pub const CONNECTED: u32 = 4;
    pub const CLOSING: u32 = 5;
    pub const CLOSED: u32 = 6;
    pub const RECONFIGURING: u32 = 7;
    pub const RECONFIGURED: u32 = 8;
}

/// What the front end has to say.
pub trait Peer {
    /// It wants to use the ring with grant `ring`, and be told by `port`; false if that cannot be.
    fn connect(&mut self, ring: u32, port: u32) -> bool;
    /// It does not want that any longer, if it ever did.
    fn disconnect(&mut self);
}

/// A disk in the store.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    index: u32,
    /// The front end's state as it was last seen.
    seen: u32,
    state: u32,
}

impl Backend {
    /// Disk number `index`, for which nobody has asked yet.
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self { index, seen: state::INITIALISING, state: state::INIT_WAIT }
    }

    /// The number that kernels know it by.
    #[must_use]
    pub const fn number(&self) -> u32 {
        FIRST + self.index * STEP
    }

    /// Name of the front end's node `name`; of its directory, with an empty one.
    fn front(&self, name: &str) -> Name {
        let number = self.number();
        Name::new(format_args!("/local/domain/{DOMAIN}/device/vbd/{number}{name}"))
    }

    /// Name of the device's node.
    fn back(&self, name: &str) -> Name {
        let number = self.number();
        Name::new(format_args!("/local/domain/0/backend/vbd/{DOMAIN}/{number}{name}"))
    }

    /// Writes what the kernel finds at its start.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn place(&self, store: &mut Store, properties: &Properties) -> Result<(), Error> {
        let mut front =
            |name, value: fmt::Arguments<'_>| store.place(self.front(name).bytes(), &short(value));
        front("/backend-id", format_args!("0"))?;
        front("/virtual-device", format_args!("{}", self.number()))?;
        front("/device-type", format_args!("disk"))?;
        front("/state", format_args!("{}", state::INITIALISING))?;
        store.place(self.front("/backend").bytes(), self.back("").bytes())?;

        let mut back =
            |name, value: fmt::Arguments<'_>| store.place(self.back(name).bytes(), &short(value));
        let info = if properties.read_only { READ_ONLY } else { 0 };
        back("/frontend-id", format_args!("{DOMAIN}"))?;
        back("/online", format_args!("1"))?;
        back("/state", format_args!("{}", state::INIT_WAIT))?;
        back("/sectors", format_args!("{}", properties.sectors))?;
        back("/sector-size", format_args!("512"))?;
        back("/physical-sector-size", format_args!("{}", properties.block))?;
        back("/info", format_args!("{info}"))?;
        back("/mode", format_args!("{}", if properties.read_only { "r" } else { "w" }))?;
        back("/feature-flush-cache", format_args!("{}", u32::from(properties.flush)))?;
        back("/feature-barrier", format_args!("0"))?;
        back("/feature-persistent", format_args!("0"))?;
        let segments = (INDIRECT as u32).min(properties.segments);
        back("/feature-max-indirect-segments", format_args!("{segments}"))?;
        back("/multi-queue-max-queues", format_args!("1"))?;
        back("/max-ring-page-order", format_args!("0"))?;
        store.place(self.back("/frontend").bytes(), self.front("").bytes())
    }

    /// Looks at what the front end has to say, if anything of it has changed.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: its new state cannot be told.
    pub fn look(&mut self, store: &mut Store, peer: &mut impl Peer) -> Result<(), Error> {
        let node = self.front("/state");
        let concerns = |(change, path): (Change, &[u8])| {
            path == node.bytes() || (change == Change::Removed && is_within(node.bytes(), path))
        };
        if !store.changes().any(concerns) {
            return Ok(());
        }
        let front = store.value(node.bytes()).and_then(number).unwrap_or(0);
        if front == self.seen {
            return Ok(());
        }
        self.seen = front;
        let next = self.next(front, store, peer);
        if next != self.state {
            self.state = next;
            store.publish(self.back("/state").bytes(), &short(format_args!("{next}")))?;
        }
        Ok(())
    }

    fn next(&self, front: u32, store: &Store, peer: &mut impl Peer) -> u32 {
        match front {
            state::INIT_WAIT | state::RECONFIGURING | state::RECONFIGURED => self.state,
            state::INITIALISED | state::CONNECTED if self.state == state::CONNECTED => self.state,
            state::INITIALISED | state::CONNECTED if self.connect(store, peer) => state::CONNECTED,
            state::INITIALISED | state::CONNECTED => state::CLOSING,
            _ => {
                peer.disconnect();
                match front {
                    state::INITIALISING => state::INIT_WAIT,
                    state::CLOSING => state::CLOSING,
                    _ => state::CLOSED,
                }
            }
        }
    }

    fn connect(&self, store: &Store, peer: &mut impl Peer) -> bool {
        let protocol = self.front("/protocol");
        let native = matches!(store.value(protocol.bytes()), None | Some(b"x86_64-abi"));
        let value = |name| store.value(self.front(name).bytes()).and_then(number);
        let (ring, port) = (value("/ring-ref"), value("/event-channel"));
        native && ring.zip(port).is_some_and(|(ring, port)| peer.connect(ring, port))
    }
}

/// A node's name.
struct Name(arrayvec::ArrayString<96>);

impl Name {
    fn new(text: fmt::Arguments<'_>) -> Self {
        let mut name = arrayvec::ArrayString::new();
        // All are shorter than that.
        let _ = fmt::Write::write_fmt(&mut name, text);
        Self(name)
    }

    fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

#[cfg(test)]
mod tests;
