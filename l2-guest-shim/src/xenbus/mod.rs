//! How a front end and its device come to terms in the store.
//! May: nothing. Context: shim. Input: guest-controlled nodes.
//!
//! Either side has a state in the store and watches the other's. The front end finds its device waiting
//! (2), writes where its rings are, and says so (3, or 4 at once); the device connects (4) and the front
//! end follows. What the device is, is in the store from the start. After the front end's end (5, 6) it
//! may begin anew (1).

#[cfg(test)]
pub mod fake;
pub mod ring;
pub mod shown;

use crate::store::{
    Change, Error, Store, number,
    path::{DOMAIN, is_within},
    short,
};
use core::fmt;

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

/// Who serves a front end.
pub trait Peer {
    /// The front end wants to use what it has written into the store; false if that cannot be.
    fn connect(&mut self, front: &Front<'_>) -> bool;
    /// It does not want that any longer, if it ever did.
    fn disconnect(&mut self);
}

/// What a front end has written into the store.
#[derive(Debug)]
pub struct Front<'a> {
    backend: &'a Backend,
    store: &'a Store,
}

impl Front<'_> {
    /// The value of its node `name`, which begins with a slash, is `value`, or there is no such node.
    #[must_use]
    pub fn is_or_lacks(&self, name: &str, value: &[u8]) -> bool {
        self.store.value(self.backend.front(name).bytes()).is_none_or(|found| found == value)
    }

    /// There is a node `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.store.value(self.backend.front(name).bytes()).is_some()
    }

    /// The number in its node `name`.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u32> {
        self.store.value(self.backend.front(name).bytes()).and_then(number)
    }
}

/// A device in the store.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// What kind of a device it is, as it is part of names.
    class: &'static str,
    number: u32,
    /// The front end's state as it was last seen.
    seen: u32,
    state: u32,
}

impl Backend {
    /// Device `number` of its class, for which nobody has asked yet.
    #[must_use]
    pub const fn new(class: &'static str, number: u32) -> Self {
        Self { class, number, seen: state::INITIALISING, state: state::INIT_WAIT }
    }

    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Name of the front end's node `name`; of its directory, with an empty one.
    fn front(&self, name: &str) -> Name {
        let Self { class, number, .. } = self;
        Name::new(format_args!("/local/domain/{DOMAIN}/device/{class}/{number}{name}"))
    }

    /// Name of the device's node.
    fn back(&self, name: &str) -> Name {
        let Self { class, number, .. } = self;
        Name::new(format_args!("/local/domain/0/backend/{class}/{DOMAIN}/{number}{name}"))
    }

    /// Writes what the kernel finds at its start of any device.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn place(&self, store: &mut Store) -> Result<(), Error> {
        self.place_front(store, "/backend-id", format_args!("0"))?;
        self.place_front(store, "/state", format_args!("{}", state::INITIALISING))?;
        store.place(self.front("/backend").bytes(), self.back("").bytes())?;
        self.place_back(store, "/frontend-id", format_args!("{DOMAIN}"))?;
        self.place_back(store, "/online", format_args!("1"))?;
        self.place_back(store, "/state", format_args!("{}", state::INIT_WAIT))?;
        store.place(self.back("/frontend").bytes(), self.front("").bytes())
    }

    /// Writes a node among the front end's that the kernel finds at its start.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn place_front(
        &self,
        store: &mut Store,
        name: &str,
        value: fmt::Arguments<'_>,
    ) -> Result<(), Error> {
        store.place(self.front(name).bytes(), &short(value))
    }

    /// Writes a node among the device's that the kernel finds at its start.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn place_back(
        &self,
        store: &mut Store,
        name: &str,
        value: fmt::Arguments<'_>,
    ) -> Result<(), Error> {
        store.place(self.back(name).bytes(), &short(value))
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
        peer.connect(&Front { backend: self, store })
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
