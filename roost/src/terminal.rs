//! Puts the terminal back as it was, whatever QEMU did to it and however QEMU ended.

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    stdio::stdin,
    termios::{OptionalActions, Termios, tcgetattr, tcsetattr},
};

/// The state of standard input at creation, restored when dropped.
#[derive(Debug)]
pub struct Restore {
    modes: Option<Termios>,
    flags: Option<OFlags>,
}

impl Restore {
    /// Remembers the state; nothing is remembered of what is no terminal.
    #[must_use]
    pub fn new() -> Self {
        Self { modes: tcgetattr(stdin()).ok(), flags: fcntl_getfl(stdin()).ok() }
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(stdin(), OptionalActions::Now, modes);
        }
        if let Some(flags) = self.flags {
            let _ = fcntl_setfl(stdin(), flags);
        }
    }
}
