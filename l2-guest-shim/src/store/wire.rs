//! Requests and answers of the store as bytes: headers, types, errors by their names.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! From Xen's public `io/xs_wire.h`. A message is a header of four 32-bit words and so many bytes as its
//! last word says. An answer repeats the type, the request's number and the transaction of what it answers.

use arrayvec::ArrayVec;
use core::fmt;
use zerocopy::IntoBytes;

/// Bytes of a header.
pub const HEADER: usize = 16;
/// Bytes that may follow it.
pub const PAYLOAD: usize = 4096;

/// Types of messages, by their names in Xen's public header.
pub mod kind {
    pub const DIRECTORY: u32 = 1;
    pub const READ: u32 = 2;
    pub const GET_PERMS: u32 = 3;
    pub const WATCH: u32 = 4;
    pub const UNWATCH: u32 = 5;
    pub const TRANSACTION_START: u32 = 6;
    pub const TRANSACTION_END: u32 = 7;
    pub const GET_DOMAIN_PATH: u32 = 10;
    pub const WRITE: u32 = 11;
    pub const MKDIR: u32 = 12;
    pub const RM: u32 = 13;
    pub const SET_PERMS: u32 = 14;
    pub const WATCH_EVENT: u32 = 15;
    pub const ERROR: u32 = 16;
    pub const IS_DOMAIN_INTRODUCED: u32 = 17;
    pub const RESET_WATCHES: u32 = 21;
}

/// Why a request is refused. The kernel is told the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Not below the domain's home.
    Access,
    /// Somebody else changed the store meanwhile: once more.
    Again,
    /// The watch exists.
    Exists,
    /// The message is not as it must be.
    Invalid,
    /// There is no such node, watch or transaction.
    NotFound,
    /// The store has no room left.
    NoSpace,
    /// Unknown type.
    Unknown,
    /// The message or its answer is too long.
    TooBig,
}

impl Error {
    /// The name, as it is sent.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Access => "EACCES",
            Self::Again => "EAGAIN",
            Self::Exists => "EEXIST",
            Self::Invalid => "EINVAL",
            Self::NotFound => "ENOENT",
            Self::NoSpace => "ENOSPC",
            Self::Unknown => "ENOSYS",
            Self::TooBig => "E2BIG",
        }
    }
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// See [`kind`].
    pub kind: u32,
    /// The request's number, for who asked.
    pub request: u32,
    /// Number of the transaction it is a part of, 0 for none.
    pub transaction: u32,
    /// Bytes that follow.
    pub len: u32,
}

impl Header {
    /// Reads one.
    #[must_use]
    pub fn parse(bytes: [u8; HEADER]) -> Self {
        let mut words = [0u32; 4];
        words.as_mut_bytes().copy_from_slice(&bytes);
        let [kind, request, transaction, len] = words;
        Self { kind, request, transaction, len }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes.copy_from_slice([self.kind, self.request, self.transaction, self.len].as_bytes());
        bytes
    }
}

/// A whole message to the kernel while it is put together.
#[derive(Debug)]
pub struct Message {
    bytes: [u8; HEADER + PAYLOAD],
    end: usize,
    sent: usize,
}

impl Message {
    /// Nothing to send.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; HEADER + PAYLOAD], end: 0, sent: 0 }
    }

    /// Begins a message; its header comes last.
    pub const fn start(&mut self) {
        self.end = HEADER;
        self.sent = 0;
    }

    /// Adds bytes to it.
    ///
    /// # Errors
    /// [`Error::TooBig`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let room = self.bytes.get_mut(self.end..self.end + bytes.len()).ok_or(Error::TooBig)?;
        room.copy_from_slice(bytes);
        self.end += bytes.len();
        Ok(())
    }

    /// The message is complete and is of type `kind`, in answer to `request` if to any.
    pub fn finish(&mut self, kind: u32, request: u32, transaction: u32) {
        let len = (self.end - HEADER) as u32;
        let header = Header { kind, request, transaction, len };
        self.bytes[..HEADER].copy_from_slice(&header.bytes());
    }

    /// What is still to be sent.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..self.end]
    }

    /// `count` bytes of the rest were sent.
    pub const fn advance(&mut self, count: usize) {
        self.sent += count;
    }
}

impl Default for Message {
    fn default() -> Self {
        Self::new()
    }
}

/// Splits off the text up to the first zero byte; the rest begins behind that.
///
/// # Errors
/// [`Error::Invalid`] if there is none.
pub fn text(payload: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let end = payload.iter().position(|&byte| byte == 0).ok_or(Error::Invalid)?;
    Ok((&payload[..end], &payload[end + 1..]))
}

/// The one text that the payload is.
///
/// # Errors
/// [`Error::Invalid`] if it is not ended by its only zero byte.
pub fn only_text(payload: &[u8]) -> Result<&[u8], Error> {
    match text(payload)? {
        (text, []) => Ok(text),
        _ => Err(Error::Invalid),
    }
}

/// A decimal number that fits 32 bits.
#[must_use]
pub fn number(text: &[u8]) -> Option<u32> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// Room for a short text.
pub type Short = ArrayVec<u8, 64>;

/// Formats a short text. What does not fit is left out.
#[must_use]
pub fn short(text: fmt::Arguments<'_>) -> Short {
    /// Takes what fits.
    struct Writer(Short);

    impl fmt::Write for Writer {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.try_extend_from_slice(text.as_bytes()).map_err(|_| fmt::Error)
        }
    }

    let mut writer = Writer(Short::new());
    let _ = fmt::Write::write_fmt(&mut writer, text);
    writer.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_a_round() {
        let header = Header { kind: 1, request: 2, transaction: 3, len: 4 };
        assert_eq!(Header::parse(header.bytes()), header);
        assert_eq!(header.bytes()[..5], [1, 0, 0, 0, 2]);
    }

    #[test]
    fn texts_end_with_a_zero() {
        assert_eq!(text(b"a\0b"), Ok((&b"a"[..], &b"b"[..])));
        assert_eq!(text(b"ab"), Err(Error::Invalid));
        assert_eq!(only_text(b"a\0"), Ok(&b"a"[..]));
        assert_eq!(only_text(b"a\0b\0"), Err(Error::Invalid));
        assert_eq!(only_text(b""), Err(Error::Invalid));
    }

    #[test]
    fn a_message_has_an_end() {
        let mut message = Message::new();
        message.start();
        assert_eq!(message.push(&[0; PAYLOAD]), Ok(()));
        assert_eq!(message.push(b"x"), Err(Error::TooBig));
        message.finish(kind::READ, 7, 0);
        assert_eq!(message.rest().len(), HEADER + PAYLOAD);
        message.advance(HEADER + PAYLOAD - 1);
        assert_eq!(message.rest(), [0]);
    }

    #[test]
    fn numbers_are_decimal() {
        assert_eq!(number(b"51712"), Some(51712));
        for bad in [&b""[..], b"-1", b"0x10", b"4294967296", b"1 ", b"\xff"] {
            assert_eq!(number(bad), None);
        }
    }
}
