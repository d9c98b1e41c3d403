//! Installs handlers and sends signals.
#![expect(unsafe_code, reason = "sigaction, handlers, tgkill")]

use super::memory::{PAGE, Region};
use core::{
    mem,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use linux_guest::syscall::syscall3;
use std::ptr;

/// Signals that came.
static CAME: AtomicU64 = AtomicU64::new(0);
/// The page that the fault handler makes writable.
static PLACE: AtomicU64 = AtomicU64::new(0);

/// A handler, ready to be installed.
#[derive(Clone, Copy)]
pub struct Handler {
    signal: i32,
    action: libc::sigaction,
}

impl core::fmt::Debug for Handler {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Handler of signal {}", self.signal)
    }
}

impl Handler {
    /// Counts SIGUSR1.
    pub fn counting() -> Self {
        Self::new(libc::SIGUSR1, count, 0)
    }

    /// Makes `region`, a single page, writable when it is written.
    pub fn repairing(region: &Region) -> Self {
        PLACE.store(region.address(), Relaxed);
        Self::new(libc::SIGSEGV, repair, libc::SA_NODEFER)
    }

    fn new(signal: i32, function: extern "C" fn(i32), flags: i32) -> Self {
        // SAFETY: an all-zero sigaction is valid: default action, empty mask.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = function as *const () as usize;
        action.sa_flags = flags;
        Self { signal, action }
    }

    /// Installs it, as programs do: through the C library.
    #[inline(always)]
    pub fn install(&self) {
        // SAFETY: the functions make a system call or count.
        unsafe { libc::sigaction(self.signal, &raw const self.action, ptr::null_mut()) };
    }
}

extern "C" fn count(_: i32) {
    // One thread counts: no need for a locked instruction.
    CAME.store(CAME.load(Relaxed) + 1, Relaxed);
}

extern "C" fn repair(_: i32) {
    let access = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    // SAFETY: the page belongs to a region that holds nothing.
    unsafe { syscall3(libc::SYS_mprotect, PLACE.load(Relaxed), PAGE, access) };
}

/// A thread that gets SIGUSR1.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    process: u64,
    thread: u64,
}

impl Target {
    /// The calling thread.
    pub fn own() -> Self {
        // SAFETY: asks for a number.
        let thread = unsafe { libc::gettid() };
        Self { process: u64::from(std::process::id()), thread: thread as u64 }
    }

    /// Sends the signal.
    #[inline(always)]
    pub fn send(self) {
        // SAFETY: the signal has a handler.
        unsafe { syscall3(libc::SYS_tgkill, self.process, self.thread, libc::SIGUSR1 as u64) };
    }
}

/// Signals that came so far.
pub fn came() -> u64 {
    CAME.load(Relaxed)
}
