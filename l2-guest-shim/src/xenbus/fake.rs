//! A kernel that talks with a device by the store, for tests.

use super::*;
use crate::store::{Header, Message};

const WRITE: u32 = 11;
const RM: u32 = 13;

/// What `read` found in the store, as long as the front end wants it.
#[derive(Debug)]
pub struct Asked<T> {
    read: fn(&Front<'_>) -> Option<T>,
    /// It.
    pub wanted: Option<T>,
    /// It is refused.
    pub refuse: bool,
}

impl<T> Peer for Asked<T> {
    fn connect(&mut self, front: &Front<'_>) -> bool {
        self.wanted = (self.read)(front).filter(|_| !self.refuse);
        self.wanted.is_some()
    }

    fn disconnect(&mut self) {
        self.wanted = None;
    }
}

/// Store, device and kernel.
#[derive(Debug)]
pub struct Talk<T> {
    /// The store.
    pub store: Box<Store>,
    backend: Backend,
    /// Who serves.
    pub asked: Asked<T>,
}

impl<T> Talk<T> {
    /// A talk with `backend`, which is in the store; `read` is how its device understands front ends.
    pub fn new(store: Box<Store>, backend: Backend, read: fn(&Front<'_>) -> Option<T>) -> Self {
        Self { store, backend, asked: Asked { read, wanted: None, refuse: false } }
    }

    /// The kernel's request about one of its nodes, and what the device makes of it.
    fn front(&mut self, kind: u32, rest: &str) {
        let mut out = Message::new();
        let payload = format!("device/{}/{}{rest}", self.backend.class, self.backend.number);
        let header = Header { kind, request: 0, transaction: 0, len: payload.len() as u32 };
        self.store.answer(header, payload.as_bytes(), &mut out);
        assert!(out.rest().ends_with(b"OK\0"), "{payload}");
        self.backend.look(&mut self.store, &mut self.asked).unwrap();
        while self.store.next_event(&mut out) {}
    }

    /// The kernel writes a node.
    pub fn write(&mut self, name: &str, value: &str) {
        self.front(WRITE, &format!("{name}\0{value}"));
    }

    /// The kernel removes a node.
    pub fn remove(&mut self, name: &str) {
        self.front(RM, &format!("{name}\0"));
    }

    /// The kernel says what state its front end is in.
    pub fn state(&mut self, state: u32) {
        self.write("/state", &state.to_string());
    }

    /// A node of the device's.
    pub fn back(&self, name: &str) -> Option<String> {
        let value = self.store.value(self.backend.back(name).bytes())?.to_vec();
        Some(String::from_utf8(value).unwrap())
    }

    /// The device's state.
    pub fn is(&self) -> String {
        self.back("/state").unwrap()
    }
}
