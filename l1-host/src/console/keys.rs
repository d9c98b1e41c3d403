//! Tells commands to the console from input to a guest.
//! May: nothing. Context: irq-off. Input: user's keystrokes.

/// The key that commands start with: Ctrl-].
pub const ESCAPE: u8 = 0x1d;

/// What a byte of input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// For the guest.
    Input(u8),
    /// The first half of a command.
    Escape,
    /// List the guests.
    List,
    /// Switch to the guest with this index.
    Select(usize),
    /// Switch to the next guest.
    Next,
    /// Stop the guest.
    Stop,
    /// Show the keys.
    Help,
    /// No command.
    Unknown,
}

/// Remembers whether the escape key came last.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// Nothing has been typed yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { escaped: false }
    }

    /// Judges the next byte.
    pub fn next(&mut self, byte: u8) -> Key {
        if !self.escaped {
            self.escaped = byte == ESCAPE;
            return if self.escaped { Key::Escape } else { Key::Input(byte) };
        }
        self.escaped = false;
        match byte {
            ESCAPE | b']' => Key::Input(ESCAPE),
            b'l' => Key::List,
            b'1'..=b'9' => Key::Select(usize::from(byte - b'1')),
            b'n' => Key::Next,
            b'q' => Key::Stop,
            b'?' => Key::Help,
            _ => Key::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn typed(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::new();
        bytes.iter().map(|&byte| keys.next(byte)).filter(|&key| key != Key::Escape).collect()
    }

    #[test]
    fn commands_follow_the_escape_key() {
        let all = b"\x1dl\x1d1\x1d9\x1dn\x1dq\x1d?\x1dx\x1d0";
        let expected = [
            Key::List,
            Key::Select(0),
            Key::Select(8),
            Key::Next,
            Key::Stop,
            Key::Help,
            Key::Unknown,
            Key::Unknown,
        ];
        assert_eq!(typed(all), expected);
    }

    #[test]
    fn everything_else_is_input() {
        assert_eq!(typed(b"l1\x03"), b"l1\x03".map(Key::Input));
        assert_eq!(typed(b"\x1d\x1dl"), [Key::Input(ESCAPE), Key::Input(b'l')]);
        assert_eq!(typed(b"\x1d]l"), [Key::Input(ESCAPE), Key::Input(b'l')]);
    }
}
