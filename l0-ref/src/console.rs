//! Connects L1's serial ports with the user: keys, screen and log.

use pv_abi::bundle::REPORT_PREFIX;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::{
    fmt,
    io::{self, IsTerminal, Read, Write},
};

/// Starts a command to this program, at a terminal: Ctrl-a.
const ESCAPE: u8 = 1;

/// Lines of the log that are longer are written in pieces.
const LONGEST_LINE: usize = 64 << 10;

/// Why there is no more input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// It ended.
    Dry,
    /// The user quit.
    Closed,
}

/// Where L1's console gets its input.
pub trait Input {
    /// Waits for the next bytes.
    ///
    /// # Errors
    /// Why there are none.
    fn next(&mut self) -> Result<Vec<u8>, Tap>;
}

/// Keys at a terminal, or what a pipe or file holds.
#[derive(Debug)]
pub struct Keyboard<R> {
    source: R,
    escapes: Option<Escapes>,
}

impl<R: Read> Keyboard<R> {
    /// Everything goes to L1.
    pub const fn plain(source: R) -> Self {
        Self { source, escapes: None }
    }

    /// Ctrl-a x quits; Ctrl-a Ctrl-a is one Ctrl-a.
    pub const fn terminal(source: R) -> Self {
        Self { source, escapes: Some(Escapes { pending: false }) }
    }
}

impl<R: Read> Input for Keyboard<R> {
    fn next(&mut self) -> Result<Vec<u8>, Tap> {
        let mut buffer = [0; 256];
        loop {
            match self.source.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return Err(Tap::Dry),
                Ok(len) => {
                    return match &mut self.escapes {
                        None => Ok(buffer[..len].to_vec()),
                        Some(escapes) => escapes.filter(&buffer[..len]),
                    };
                }
            }
        }
    }
}

#[derive(Debug)]
struct Escapes {
    pending: bool,
}

impl Escapes {
    fn filter(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Tap> {
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (self.pending, byte) {
                (true, b'x') => return Err(Tap::Closed),
                (false, ESCAPE) => self.pending = true,
                (_, byte) => {
                    self.pending = false;
                    out.push(byte);
                }
            }
        }
        Ok(out)
    }
}

/// A terminal in raw mode, so that every key goes to L1's guest; put back when dropped.
#[derive(Debug)]
pub struct Raw(Termios);

impl Raw {
    /// Takes the terminal at standard input, if there is one.
    #[must_use]
    pub fn take() -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        // Lines of this program and of L1's log still begin at the left.
        raw.output_modes = before.output_modes;
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no care.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Where a serial port writes to.
pub struct Output(Box<dyn Write + Send>);

impl Output {
    /// Writes to `to`.
    pub fn new(to: impl Write + Send + 'static) -> Self {
        Self(Box::new(to))
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// L1's log: goes to a file by the line, and what is for the user to standard error too.
#[derive(Debug)]
pub struct Log<W> {
    file: W,
    line: Vec<u8>,
}

impl<W> Log<W> {
    /// An empty log that is kept in `file`.
    pub const fn new(file: W) -> Self {
        Self { file, line: Vec::new() }
    }
}

/// The text for the user in a line of L1's log. It quotes guests, whose words must not move the
/// user's cursor or change their terminal.
fn report(line: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(line);
    let text = line.trim_end().strip_prefix(REPORT_PREFIX)?;
    Some(text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
}

impl<W: Write> Write for Log<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' || self.line.len() == LONGEST_LINE {
                if let Some(text) = report(&self.line) {
                    eprintln!("l0-ref: {text}");
                }
                self.file.write_all(&self.line)?;
                self.line.clear();
            }
        }
        Ok(bytes.len())
    }

    /// A driver sends a byte at a time; lines are what others want to see.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_quits_and_nothing_else() {
        let keys = |bytes: &'static [u8]| Keyboard::terminal(bytes).next();
        assert_eq!(keys(b"ab"), Ok(b"ab".to_vec()));
        assert_eq!(keys(b"a\x01x"), Err(Tap::Closed));
        assert_eq!(keys(b"\x01\x01x"), Ok(b"\x01x".to_vec()));
        assert_eq!(keys(b""), Err(Tap::Dry));
        assert_eq!(Keyboard::plain(&b"\x01x"[..]).next(), Ok(b"\x01x".to_vec()));
    }

    #[test]
    fn a_log_is_kept_by_lines() {
        let mut kept = Vec::new();
        let mut log = Log::new(&mut kept);
        log.write_all(b"one\ntw").unwrap();
        log.flush().unwrap();
        assert_eq!(kept, b"one\n");
    }

    #[test]
    fn reports_are_for_the_user() {
        assert_eq!(report(b"@report no \x1b[2Jguest\r\n"), Some("no \u{fffd}[2Jguest".into()));
        assert_eq!(report(b" @report no guest\n"), None);
        assert_eq!(report(b"clock: 1\n"), None);
    }
}
