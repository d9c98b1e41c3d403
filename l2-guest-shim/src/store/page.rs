//! The store's ring in a page that it shares with the kernel.
//! May: guest-memory. Context: shim. Input: guest-controlled ring indices and messages.

use super::{Connection, Pipe, Store};
use crate::{
    devices, guest,
    hw::{area::Area, lock::Mutex, memory},
};
use core::sync::atomic::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// Bytes of either ring.
const SIZE: u32 = 1024;
/// Offsets in the page.
const REQUESTS: u64 = 0;
const ANSWERS: u64 = 1024;
const REQUESTS_CONS: u64 = 2048;
const REQUESTS_PROD: u64 = 2052;
const ANSWERS_CONS: u64 = 2056;
const ANSWERS_PROD: u64 = 2060;

/// Guest-physical address of the ring's page; 0 if there is no store.
static PAGE: AtomicU64 = AtomicU64::new(0);
static PORT: AtomicU32 = AtomicU32::new(0);
/// One vCPU at a time serves.
static SERVED: Mutex<(Store, Connection)> = Mutex::new((Store::new(), Connection::new()));

/// States where the ring is and which port tells the kernel of answers.
pub fn open(page: u64, port: u32) {
    PORT.store(port, Relaxed);
    PAGE.store(page, Relaxed);
}

/// There is a store.
#[must_use]
pub fn is_open() -> bool {
    PAGE.load(Relaxed) != 0
}

/// Lets the devices write what the kernel finds at its start.
pub fn prepare<T>(write: impl FnOnce(&mut Store) -> T) -> T {
    write(&mut SERVED.lock().0)
}

/// The kernel has put a request, or a part of one, into the ring, or taken an answer out.
pub fn kick(area: Area) {
    let page = PAGE.load(Relaxed);
    let serve = || {
        let mut served = SERVED.lock();
        let (store, connection) = &mut *served;
        connection.serve(store, &mut Ring(page), |store| devices::store_changed(store, area))
    };
    if page != 0 && serve() {
        guest::raise(PORT.load(Relaxed), area);
    }
}

/// Both rings of the page at this guest-physical address.
struct Ring(u64);

impl Ring {
    fn index(&self, offset: u64) -> &'static AtomicU32 {
        memory::word32(self.0 + offset).expect("the page was placed in RAM")
    }

    fn bytes(&self, ring: u64, first: u32) -> impl Iterator<Item = &'static AtomicU8> {
        let page = self.0;
        (0u32..).map_while(move |byte| {
            memory::byte(page + ring + u64::from(first.wrapping_add(byte) % SIZE))
        })
    }
}

impl Pipe for Ring {
    fn read(&mut self, out: &mut [u8]) -> usize {
        let (cons, prod) = (self.index(REQUESTS_CONS), self.index(REQUESTS_PROD));
        let at = cons.load(Relaxed);
        let waiting = prod.load(Acquire).wrapping_sub(at).min(SIZE);
        let count = out.len().min(waiting as usize);
        for (byte, from) in out[..count].iter_mut().zip(self.bytes(REQUESTS, at)) {
            *byte = from.load(Relaxed);
        }
        cons.store(at.wrapping_add(count as u32), Release);
        count
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let (cons, prod) = (self.index(ANSWERS_CONS), self.index(ANSWERS_PROD));
        let at = prod.load(Relaxed);
        let room = SIZE.saturating_sub(at.wrapping_sub(cons.load(Acquire)));
        let count = bytes.len().min(room as usize);
        for (byte, to) in bytes[..count].iter().zip(self.bytes(ANSWERS, at)) {
            to.store(*byte, Relaxed);
        }
        prod.store(at.wrapping_add(count as u32), Release);
        count
    }
}
