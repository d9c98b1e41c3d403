//! Requests and responses of a network card's front end as their bytes say them.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! From Xen's public `io/netif.h`. A frame to be sent is a request for its first piece, then "extra
//! infos" if that says so, then requests for more pieces. A buffer to receive into is a request, and
//! what was put there is the response in the same place.

/// Bytes of a place in the ring of frames to be sent, and in that of buffers to receive into.
pub const SENT: usize = 12;
/// See [`SENT`].
pub const RECEIVED: usize = 8;
/// Pieces that a frame may have; every back end takes so many.
pub const PIECES: usize = 18;
/// Bytes of a page: no piece goes beyond its own.
pub const PAGE: u16 = 4096;
/// Bytes of a frame's two addresses and its type: none is shorter.
pub const SHORTEST: u16 = 14;

/// Status of a response; that to a received frame is its length otherwise.
#[expect(missing_docs, reason = "the names are those of Xen's public header")]
pub mod status {
    pub const OKAY: i16 = 0;
    pub const ERROR: i16 = -1;
    /// The response to an extra info.
    pub const NULL: i16 = 1;
}

/// Flags of a frame to be sent.
#[expect(missing_docs, reason = "the names are those of Xen's public header")]
pub mod sent {
    pub const CSUM_BLANK: u16 = 1;
    pub const MORE_DATA: u16 = 4;
    pub const EXTRA_INFO: u16 = 8;
}

/// Flags of a frame received.
#[expect(missing_docs, reason = "the names are those of Xen's public header")]
pub mod received {
    pub const DATA_VALIDATED: u16 = 1;
    pub const CSUM_BLANK: u16 = 2;
    pub const MORE_DATA: u16 = 4;
    pub const EXTRA_INFO: u16 = 8;
}

/// A piece of a frame to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Grant of its page.
    pub grant: u32,
    /// Where it begins there.
    pub offset: u16,
    /// See [`sent`].
    pub flags: u16,
    /// The front end's own number of it.
    pub id: u16,
    /// Its bytes; of the first piece, those of the whole frame.
    pub size: u16,
}

impl Piece {
    /// Understands one.
    #[must_use]
    pub const fn parse(bytes: &[u8; SENT]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Self {
            grant: u32::from_le_bytes([a, b, c, d]),
            offset: u16::from_le_bytes([e, f]),
            flags: u16::from_le_bytes([g, h]),
            id: u16::from_le_bytes([i, j]),
            size: u16::from_le_bytes([k, l]),
        }
    }
}

/// What the card is to make of a long segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Bytes of each part's data.
    pub size: u16,
    /// What it is a segment of.
    pub protocol: Protocol,
}

/// A protocol below TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What is known of a frame beside its pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// It is to be cut.
    Cut(Segmentation),
    /// Something that does not change what is sent.
    Ignored,
    /// Something that cannot be done.
    Bad,
}

/// Kinds of extra infos.
const GSO: u8 = 1;
const HASH: u8 = 4;

impl Segmentation {
    /// The bytes of an extra info that says so of a frame received. It takes the place of a buffer, and no
    /// other follows.
    #[must_use]
    pub const fn bytes(self) -> [u8; RECEIVED] {
        let [low, high] = self.size.to_le_bytes();
        let protocol = match self.protocol {
            Protocol::V4 => 1,
            Protocol::V6 => 2,
        };
        [GSO, 0, low, high, protocol, 0, 0, 0]
    }
}

impl Extra {
    /// Understands one; true if another follows.
    #[must_use]
    pub const fn parse(bytes: &[u8; SENT]) -> (Self, bool) {
        const MORE: u8 = 1;
        let [kind, flags, low, high, protocol, ..] = *bytes;
        let size = u16::from_le_bytes([low, high]);
        let extra = match (kind, protocol) {
            (GSO, 1) if size > 0 => Self::Cut(Segmentation { size, protocol: Protocol::V4 }),
            (GSO, 2) if size > 0 => Self::Cut(Segmentation { size, protocol: Protocol::V6 }),
            (HASH, _) => Self::Ignored,
            _ => Self::Bad,
        };
        (extra, flags & MORE != 0)
    }
}

/// The bytes of the response to a piece, or to an extra info.
#[must_use]
pub const fn response(id: u16, status: i16) -> [u8; 4] {
    let ([a, b], [c, d]) = (id.to_le_bytes(), status.to_le_bytes());
    [a, b, c, d]
}

/// A buffer to receive into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The front end's own number of it.
    pub id: u16,
    /// Grant of its page.
    pub grant: u32,
}

impl Room {
    /// Understands one.
    #[must_use]
    pub const fn parse(bytes: &[u8; RECEIVED]) -> Self {
        let [a, b, _, _, c, d, e, f] = *bytes;
        Self { id: u16::from_le_bytes([a, b]), grant: u32::from_le_bytes([c, d, e, f]) }
    }
}

/// What was received into a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// The front end's own number of the buffer.
    pub id: u16,
    /// Where the data begins in its page.
    pub offset: u16,
    /// See [`received`].
    pub flags: u16,
    /// Bytes, or a status below 0.
    pub status: i16,
}

impl Filled {
    /// Its bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; RECEIVED] {
        let ([a, b], [c, d]) = (self.id.to_le_bytes(), self.offset.to_le_bytes());
        let ([e, f], [g, h]) = (self.flags.to_le_bytes(), self.status.to_le_bytes());
        [a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_and_its_response() {
        let piece = Piece::parse(&[1, 2, 0, 0, 0x10, 0, 5, 0, 7, 0, 0xea, 5]);
        let expected = Piece { grant: 0x201, offset: 16, flags: 5, id: 7, size: 1514 };
        assert_eq!(piece, expected);
        assert_eq!(response(7, status::ERROR), [7, 0, 0xff, 0xff]);
    }

    #[test]
    fn extra_infos() {
        let cut = |protocol| Extra::Cut(Segmentation { size: 1448, protocol });
        for (bytes, expected) in [
            ([1, 0, 0xa8, 5, 1], (cut(Protocol::V4), false)),
            ([1, 1, 0xa8, 5, 2], (cut(Protocol::V6), true)),
            ([1, 0, 0, 0, 1], (Extra::Bad, false)),
            ([1, 0, 0xa8, 5, 3], (Extra::Bad, false)),
            ([4, 0, 1, 2, 3], (Extra::Ignored, false)),
            ([0, 0, 0, 0, 0], (Extra::Bad, false)),
            ([2, 1, 0, 0, 0], (Extra::Bad, true)),
        ] {
            let mut raw = [0; SENT];
            raw[..5].copy_from_slice(&bytes);
            assert_eq!(Extra::parse(&raw), expected, "{bytes:?}");
        }
        let told = |protocol| Segmentation { size: 1448, protocol }.bytes();
        assert_eq!(told(Protocol::V4), [1, 0, 0xa8, 5, 1, 0, 0, 0]);
        assert_eq!(told(Protocol::V6), [1, 0, 0xa8, 5, 2, 0, 0, 0]);
    }

    #[test]
    fn a_buffer_and_what_is_in_it() {
        assert_eq!(Room::parse(&[9, 0, 0, 0, 4, 3, 2, 1]), Room { id: 9, grant: 0x0102_0304 });
        let filled = Filled { id: 9, offset: 12, flags: 3, status: 60 };
        assert_eq!(filled.bytes(), [9, 0, 12, 0, 3, 0, 60, 0]);
    }
}
