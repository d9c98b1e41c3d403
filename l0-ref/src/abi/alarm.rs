//! Wakes a vCPU at its deadline.

use crate::kick::Kick;
use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

/// A thread that waits for one deadline at a time. It sleeps through deadlines that are put off, so
/// that a RUN costs no system call for it.
#[derive(Debug)]
pub struct Alarm(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    due: Option<(Instant, Arc<Kick>)>,
    asleep_until: Option<Instant>,
    over: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        let mut state = self.state();
        while !state.over {
            let now = Instant::now();
            let due = state.due.as_ref().map(|(at, _)| *at);
            state.asleep_until = due;
            state = match due {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) if at > now => {
                    let waited = self.changed.wait_timeout(state, at - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                Some(_) => {
                    if let Some((_, kick)) = state.due.take() {
                        kick.poke();
                    }
                    state
                }
            };
        }
    }
}

impl Alarm {
    /// An alarm with nothing to wait for.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn new() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        thread::Builder::new().name("alarm".into()).spawn(move || watched.watch())?;
        Ok(Self(shared))
    }

    /// Pokes `kick` at `at`, in place of what was armed before.
    pub fn arm(&self, at: Instant, kick: &Arc<Kick>) {
        let mut state = self.0.state();
        state.due = Some((at, Arc::clone(kick)));
        if state.asleep_until.is_none_or(|until| at < until) {
            self.0.changed.notify_one();
        }
    }

    /// Waits for nothing.
    pub fn disarm(&self) {
        self.0.state().due = None;
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.0.state().over = true;
        self.0.changed.notify_one();
    }
}
