//! Requests of a block device's front end as their bytes say them.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! From Xen's public `io/blkif.h`, the layout of 64-bit kernels. A request is copied out of the ring
//! once; what is read here is that copy.

use arrayvec::ArrayVec;

/// Bytes of a request's place in the ring.
pub const SIZE: usize = 112;
/// Sectors of a page.
const PAGE_SECTORS: u8 = 8;
/// Segments in a request itself.
const DIRECT: usize = 11;
/// Segments at most that a request may have in pages of their own, and that a page of them has room for.
pub const INDIRECT: usize = 32;
/// Bytes of a segment.
pub const SEGMENT: usize = 8;

/// Status of a response.
#[expect(missing_docs, reason = "the names are those of Xen's public header")]
pub mod status {
    pub const OKAY: i16 = 0;
    pub const ERROR: i16 = -1;
    pub const EOPNOTSUPP: i16 = -2;
}

/// Numbers of operations.
#[expect(missing_docs, reason = "the names are those of Xen's public header")]
pub mod op {
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const FLUSH: u8 = 3;
    pub const DISCARD: u8 = 5;
    pub const INDIRECT: u8 = 6;
}

/// Where data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the disk to memory.
    Read,
    /// From memory to the disk.
    Write,
}

/// A piece of a page, in sectors of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Grant of the page.
    pub grant: u32,
    /// First sector.
    pub first: u8,
    /// Sectors; at least one, all within the page.
    pub count: u8,
}

impl Segment {
    /// Understands one; `None` if it is not within its page.
    #[must_use]
    pub fn parse(bytes: [u8; SEGMENT]) -> Option<Self> {
        let [a, b, c, d, first, last, ..] = bytes;
        let fits = first <= last && last < PAGE_SECTORS;
        fits.then(|| Self {
            grant: u32::from_le_bytes([a, b, c, d]),
            first,
            count: last - first + 1,
        })
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A transfer of these segments.
    Direct(Direction, ArrayVec<Segment, DIRECT>),
    /// A transfer of so many segments, which are in a page with this grant.
    Indirect(Direction, usize, u32),
    /// All that was written is to outlive the machine.
    Flush,
    /// So many sectors are not needed any more.
    Discard(u64),
    /// There is no such operation here.
    Unsupported,
    /// It makes no sense.
    Bad,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its operation's number, for the response: of an indirect one, what that is about.
    pub operation: u8,
    /// The front end's own number of it, for the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector: u64,
    /// What is asked for.
    pub kind: Kind,
}

impl Request {
    /// Understands one.
    #[must_use]
    pub fn parse(bytes: &[u8; SIZE]) -> Self {
        let operation = bytes[0];
        let kind = match operation {
            op::READ => direct(Direction::Read, bytes),
            op::WRITE => direct(Direction::Write, bytes),
            // One with data would have to be a write as well; nobody sends it.
            op::FLUSH if bytes[1] == 0 => Kind::Flush,
            op::FLUSH => Kind::Bad,
            // A flag would have the disk forget for certain, which none promises.
            op::DISCARD if bytes[1] == 0 => Kind::Discard(word(bytes, 24)),
            op::INDIRECT => indirect(bytes),
            _ => Kind::Unsupported,
        };
        let operation = if operation == op::INDIRECT { bytes[1] } else { operation };
        Self { operation, id: word(bytes, 8), sector: word(bytes, 16), kind }
    }
}

/// A response's bytes.
#[must_use]
pub fn response(id: u64, operation: u8, status: i16) -> [u8; 12] {
    let mut response = [0; 12];
    response[..8].copy_from_slice(&id.to_le_bytes());
    response[8] = operation;
    response[10..].copy_from_slice(&status.to_le_bytes());
    response
}

fn array<const N: usize>(bytes: &[u8; SIZE], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

fn word(bytes: &[u8; SIZE], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// Number of segments at 1, segments from 24 on.
fn direct(direction: Direction, bytes: &[u8; SIZE]) -> Kind {
    let count = usize::from(bytes[1]);
    if !(1..=DIRECT).contains(&count) {
        return Kind::Bad;
    }
    let segments = (0..count).map(|n| Segment::parse(array(bytes, 24 + n * SEGMENT)));
    segments.collect::<Option<_>>().map_or(Kind::Bad, |all| Kind::Direct(direction, all))
}

/// Operation at 1, number of segments at 2 (16 bits), grants of pages with segments from 28 on.
fn indirect(bytes: &[u8; SIZE]) -> Kind {
    let direction = match bytes[1] {
        op::READ => Direction::Read,
        op::WRITE => Direction::Write,
        _ => return Kind::Bad,
    };
    let count = usize::from(u16::from_le_bytes(array(bytes, 2)));
    if !(1..=INDIRECT).contains(&count) {
        return Kind::Bad;
    }
    Kind::Indirect(direction, count, u32::from_le_bytes(array(bytes, 28)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(head: &[u8], segments: &[[u8; 8]]) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[..head.len()].copy_from_slice(head);
        bytes[8..16].copy_from_slice(&0x1122_u64.to_le_bytes());
        bytes[16..24].copy_from_slice(&77_u64.to_le_bytes());
        for (place, segment) in bytes[24..].chunks_exact_mut(8).zip(segments) {
            place.copy_from_slice(segment);
        }
        bytes
    }

    #[test]
    fn a_read_of_two_segments() {
        let request =
            Request::parse(&bytes(&[0, 2], &[[8, 1, 0, 0, 0, 7, 0, 0], [9, 0, 0, 0, 3, 3, 0, 0]]));
        let segments = [
            Segment { grant: 0x108, first: 0, count: 8 },
            Segment { grant: 9, first: 3, count: 1 },
        ];
        let kind = Kind::Direct(Direction::Read, segments.into_iter().collect());
        assert_eq!(request, Request { operation: 0, id: 0x1122, sector: 77, kind });
    }

    #[test]
    fn a_response() {
        assert_eq!(response(0x1234, 1, -1), [0x34, 0x12, 0, 0, 0, 0, 0, 0, 1, 0, 0xff, 0xff]);
    }

    #[test]
    fn a_discard() {
        let raw = bytes(&[5, 0], &[[9, 0, 0, 0, 1, 0, 0, 0]]);
        assert_eq!(Request::parse(&raw).kind, Kind::Discard(0x1_0000_0009));
        assert_eq!(Request::parse(&bytes(&[5, 1], &[])).kind, Kind::Unsupported, "secure");
    }

    #[test]
    fn an_indirect_write() {
        let mut raw = bytes(&[6, 1, 32, 0], &[]);
        raw[28..32].copy_from_slice(&123_u32.to_le_bytes());
        let request = Request::parse(&raw);
        assert_eq!(request.kind, Kind::Indirect(Direction::Write, 32, 123));
        assert_eq!(request.operation, op::WRITE, "what the response is expected to say");
        for (at, value) in [(1, 3), (2, 0), (2, 33), (3, 1)] {
            let mut bad = raw;
            bad[at] = value;
            assert_eq!(Request::parse(&bad).kind, Kind::Bad);
        }
    }

    #[test]
    fn what_is_wrong_or_unknown() {
        let segment = [8, 0, 0, 0, 0, 7, 0, 0];
        for (head, last, kind) in [
            (&[0, 0][..], 7, Kind::Bad),
            (&[0, 12], 7, Kind::Bad),
            (&[1, 1], 8, Kind::Bad),
            (&[3, 1], 7, Kind::Bad),
            (&[3, 0], 7, Kind::Flush),
            (&[2, 1], 7, Kind::Unsupported),
            (&[5, 1], 7, Kind::Unsupported),
            (&[255, 0], 7, Kind::Unsupported),
        ] {
            let mut segment = segment;
            segment[5] = last;
            assert_eq!(Request::parse(&bytes(head, &[segment])).kind, kind, "{head:?} {last}");
        }
        assert_eq!(Segment::parse([0, 0, 0, 0, 4, 3, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_understood(raw in prop::collection::vec(any::<u8>(), SIZE)) {
            let raw: [u8; SIZE] = raw.try_into().unwrap();
            if let Kind::Direct(_, segments) = Request::parse(&raw).kind {
                let sane = |s: &Segment| s.count >= 1 && s.first + s.count <= PAGE_SECTORS;
                prop_assert!(!segments.is_empty() && segments.iter().all(sane));
            }
        }
    }
}
