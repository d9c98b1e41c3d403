//! Makes a vCPU that runs in one thread return, from another.

use crate::{
    flaw::{self, Flaw},
    run_area::ExitFlag,
};
use nix::sys::{
    pthread::{Pthread, pthread_kill, pthread_self},
    signal::Signal,
};
use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

/// Kicks one vCPU.
#[derive(Debug, Default)]
pub struct Kick {
    /// Rule L0-KICK-1: set by KICK, cleared by the RUN that tells.
    kicked: AtomicBool,
    runner: Mutex<Option<Runner>>,
}

#[derive(Debug)]
struct Runner {
    thread: Pthread,
    exit: ExitFlag,
}

/// A thread that runs the vCPU, until dropped.
#[derive(Debug)]
pub struct Running<'a>(&'a Kick);

/// The signal that ends a system call, KVM_RUN above all.
const SIGNAL: Signal = Signal::SIGUSR1;

/// Lets the signal of kicks do nothing but interrupt.
///
/// # Errors
/// The system's.
pub fn install() -> io::Result<()> {
    signal_hook::flag::register(SIGNAL as i32, Arc::default()).map(drop)
}

impl Kick {
    /// Sets the kick flag and makes the vCPU return.
    pub fn kick(&self) {
        if flaw::is(Flaw::KickLost) && self.runner().is_none() {
            return;
        }
        self.kicked.store(true, SeqCst);
        self.poke();
    }

    /// Makes the vCPU look at what is due.
    pub fn poke(&self) {
        if let Some(runner) = &*self.runner() {
            // Before the signal: a thread that has not called KVM yet will find it there.
            runner.exit.set(true);
            // A registered thread is alive.
            let _ = pthread_kill(runner.thread, SIGNAL);
        }
    }

    /// The calling thread runs the vCPU from here on.
    #[must_use]
    pub fn enter(&self, exit: ExitFlag) -> Running<'_> {
        *self.runner() = Some(Runner { thread: pthread_self(), exit });
        Running(self)
    }

    /// Forgets requests to exit; what they were about must be looked at afterwards.
    pub fn clear_request(&self) {
        if let Some(runner) = &*self.runner() {
            runner.exit.set(false);
        }
    }

    /// Whether there was a kick; forgets it.
    pub fn take(&self) -> bool {
        self.kicked.swap(false, SeqCst)
    }

    /// Whether there was a kick.
    pub fn is_kicked(&self) -> bool {
        self.kicked.load(SeqCst)
    }

    fn runner(&self) -> MutexGuard<'_, Option<Runner>> {
        self.runner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.runner() = None;
    }
}
