//! Waits for commands in a mailbox (ACPI 6.5, section 5.2.12.19).
//! May: unsafe. Context: a parked processor. Input: L1, which is under test.
#![expect(unsafe_code, reason = "the command says where to jump")]

use super::console::println;
use core::{
    mem,
    sync::atomic::{
        AtomicU16, AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

/// The part of the mailbox that an operating system writes.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Mailbox {
    command: AtomicU16,
    reserved: AtomicU16,
    id: AtomicU32,
    vector: AtomicU64,
}

const NOOP: u16 = 0;
const WAKE_UP: u16 = 1;

/// The mailbox.
pub static MAILBOX: Mailbox = Mailbox {
    command: AtomicU16::new(NOOP),
    reserved: AtomicU16::new(0),
    id: AtomicU32::new(0),
    vector: AtomicU64::new(0),
};

/// Waits for the command to wake processor `id`, and does it; if `late`, when there is one for another.
pub fn wait(id: u32, late: bool) -> ! {
    while MAILBOX.command.load(Acquire) != WAKE_UP || MAILBOX.id.load(Relaxed) != id {
        core::hint::spin_loop();
    }
    let vector = MAILBOX.vector.load(Relaxed);
    // Whoever gave the command waits, so nobody else prints.
    println!("firmware: processor {id} goes to {vector:#x}");
    MAILBOX.command.store(NOOP, Release);
    while late && MAILBOX.id.load(Acquire) == id {
        core::hint::spin_loop();
    }
    // SAFETY: L1 says that code of its own is there, which does not come back.
    let go: extern "C" fn() -> ! = unsafe { mem::transmute(vector) };
    go()
}
