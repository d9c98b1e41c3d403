//! The one place that all output goes to, and what L1 itself says there.
//! May: port-io, through [`Port`]. Context: irq-off.

use core::fmt::{self, Arguments, Write};

/// Where output ends up.
pub trait Port {
    /// Sends all of `bytes`.
    fn send(&self, bytes: &[u8]);
}

/// A port, and where its cursor is.
#[derive(Debug)]
pub struct Screen<P> {
    port: P,
    /// A line has begun and not ended.
    within_line: bool,
}

impl<P: Port> Screen<P> {
    /// A screen at `port`.
    #[must_use]
    pub const fn new(port: P) -> Self {
        Self { port, within_line: false }
    }

    /// Shows output of a guest.
    pub fn show(&mut self, bytes: &[u8]) {
        if let Some(&last) = bytes.last() {
            self.port.send(bytes);
            self.within_line = last != b'\n';
        }
    }

    /// Says something, in a line of its own.
    pub fn say(&mut self, words: Arguments<'_>) {
        if self.within_line {
            self.show(b"\r\n");
        }
        // Never fails, since `write_str` does not.
        let _ = write!(self, "[roost: {words}]\r\n");
    }
}

impl<P: Port> Write for Screen<P> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.show(text.as_bytes());
        Ok(())
    }
}
