//! The xenstore ring, with a store behind it in which there is nothing.
//! May: guest-memory. Context: shim. Input: guest-controlled ring indices and messages.
//!
//! A request is a header of four 32-bit words (type, request, transaction, length) and so many
//! bytes. The answer to any is an error, an answer of this type with a name: what is looked for
//! is not there, and what is to be changed may not be.

use crate::{
    guest,
    hw::{area::Area, memory},
};
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use spin::Mutex;
use zerocopy::IntoBytes;

/// Bytes of either ring.
const SIZE: u32 = 1024;
/// Offsets in the page.
const REQUESTS: u64 = 0;
const ANSWERS: u64 = 1024;
const REQUESTS_CONS: u64 = 2048;
const REQUESTS_PROD: u64 = 2052;
const ANSWERS_CONS: u64 = 2056;
const ANSWERS_PROD: u64 = 2060;

/// Bytes of a header.
const HEADER: usize = 16;
/// Types of requests that only look: directory, read, get_perms.
const LOOKS: core::ops::RangeInclusive<u32> = 1..=3;
/// Type of an error.
const ERROR: u32 = 16;

/// Guest-physical address of the ring's page; 0 if there is no store.
static PAGE: AtomicU64 = AtomicU64::new(0);
static PORT: AtomicU32 = AtomicU32::new(0);
/// One vCPU at a time serves.
static SERVING: Mutex<()> = Mutex::new(());
/// Bytes of the last request that are still to come.
static BODY: AtomicU32 = AtomicU32::new(0);

/// States where the ring is and which port tells the kernel of answers.
pub fn open(page: u64, port: u32) {
    PORT.store(port, Relaxed);
    PAGE.store(page, Relaxed);
}

/// The kernel has put a request, or a part of one, into the ring, or taken an answer out.
pub fn kick(area: Area) {
    let page = PAGE.load(Relaxed);
    let served = || {
        let _serving = SERVING.lock();
        serve(page)
    };
    if page != 0 && served() == Some(true) {
        guest::raise(PORT.load(Relaxed), area);
    }
}

/// Serves what is there and can be answered; true if something was answered.
fn serve(page: u64) -> Option<bool> {
    let index = |offset| memory::word32(page + offset);
    let (cons, prod) = (index(REQUESTS_CONS)?, index(REQUESTS_PROD)?);
    let (answered, taken) = (index(ANSWERS_PROD)?, index(ANSWERS_CONS)?);
    let mut any = false;
    loop {
        let at = cons.load(Relaxed);
        let waiting = prod.load(Acquire).wrapping_sub(at).min(SIZE);
        let body = BODY.load(Relaxed).min(waiting);
        if body > 0 {
            BODY.fetch_sub(body, Relaxed);
            cons.store(at.wrapping_add(body), Release);
            continue;
        }
        let out = answered.load(Relaxed);
        let room = SIZE.saturating_sub(out.wrapping_sub(taken.load(Acquire)));
        if BODY.load(Relaxed) > 0 || (waiting as usize) < HEADER || (room as usize) < HEADER + 7 {
            return Some(any);
        }
        let mut header = [0u32; 4];
        for (offset, byte) in (0u32..).zip(header.as_mut_bytes()) {
            *byte = memory::byte(ring(page + REQUESTS, at.wrapping_add(offset)))?.load(Relaxed);
        }
        let [kind, request, transaction, len] = header;
        let name: &[u8; 7] = if LOOKS.contains(&kind) { b"ENOENT\0" } else { b"EACCES\0" };
        let head = [ERROR, request, transaction, name.len() as u32];
        for (offset, &byte) in (0u32..).zip(head.as_bytes().iter().chain(name)) {
            memory::byte(ring(page + ANSWERS, out.wrapping_add(offset)))?.store(byte, Relaxed);
        }
        answered.store(out.wrapping_add((HEADER + name.len()) as u32), Release);
        cons.store(at.wrapping_add(HEADER as u32), Release);
        BODY.store(len, Relaxed);
        any = true;
    }
}

/// Address of the byte with number `index` in a ring at `start`.
const fn ring(start: u64, index: u32) -> u64 {
    start + (index % SIZE) as u64
}
