//! Lets two machines run at once and no more.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Machines that may run at once: one takes a CPU, and up to 5 GiB of memory.
const SLOTS: usize = 2;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// The right to run a machine; given back when dropped.
#[derive(Debug)]
pub struct Slot(());

impl Slot {
    /// Waits for a slot.
    pub fn take() -> Self {
        let mut taken = FREED
            .wait_while(count(), |taken| *taken >= SLOTS)
            .unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Self(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *count() -= 1;
        FREED.notify_one();
    }
}

fn count() -> MutexGuard<'static, usize> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}
