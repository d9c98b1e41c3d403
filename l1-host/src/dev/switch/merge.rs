//! Joins TCP segments that follow one another into a long packet, for receivers that take it whole, and leaves
//! out acknowledgements that another makes superfluous.
//! May: alloc. Context: run-loop, irq-off. Input: frames from the network.
//!
//! The opposite of [`super::segment`]: dividing what was joined gives the same segments again. So only those are
//! joined that differ in nothing but what follows from their place, and whose checksums are right.

use super::{
    ETHERNET, LONGEST,
    frame::{Frame, Offload, Partial, copy_and_sum, folded, sum},
    segment::{
        CHECKSUM, Division, FLAGS, LONGEST_SEGMENT, OFFSET, PROTOCOL, SEQUENCE, TCP, Version,
    },
};
use ack::{Ack, unfilled};
use alloc::boxed::Box;

mod ack;

/// Bytes of headers at most: Ethernet's, IPv6's, and the longest of TCP.
const HEADERS: usize = ETHERNET + 40 + 60;
/// Flags of TCP: the only ones that what is joined may have. Nothing follows PSH.
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// Bytes of data in a segment, at least: shorter ones are not worth it, and dividing refuses them.
const LEAST: usize = 128;

/// A packet that grows.
#[derive(Debug)]
pub struct Merger {
    /// Its first segment, and the data of those that follow.
    bytes: Box<[u8]>,
    spare: Box<[u8]>,
    open: Option<Open>,
    /// There is an acknowledgement instead.
    ack: Option<Ack>,
}

/// What is known of it.
#[derive(Debug)]
struct Open {
    headers: Headers,
    /// What is the same in all segments.
    same: [u8; HEADERS],
    /// Bytes of headers and data.
    len: usize,
    /// Bytes of data in each segment but the last.
    size: usize,
    segments: usize,
    /// The next segment's sequence number.
    next: u32,
    /// Nothing may follow.
    full: bool,
}

/// Where a segment's headers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Headers {
    version: Version,
    tcp: usize,
    data: usize,
}

impl Default for Merger {
    fn default() -> Self {
        let buffer = |len| alloc::vec![0; len].into();
        Self { bytes: buffer(LONGEST), spare: buffer(LONGEST_SEGMENT), open: None, ack: None }
    }
}

impl Merger {
    /// Takes `segment`, if it follows what is there or has the same to say; false if it does not.
    pub fn extend(&mut self, segment: &[u8]) -> bool {
        if let Some(ack) = &self.ack {
            return ack.replace(&mut self.bytes, segment);
        }
        let Some(open) = self.open.as_mut().filter(|open| !open.full) else { return false };
        let Some(headers) = Headers::find(segment).filter(|headers| *headers == open.headers)
        else {
            return false;
        };
        let (head, data) = segment.split_at(headers.data);
        let follows = headers.word(head, SEQUENCE) == open.next
            && (1..=open.size).contains(&data.len())
            && open.len + data.len() <= ETHERNET + usize::from(u16::MAX)
            && headers.same(head) == open.same;
        if !follows || !headers.copy(head, data, &mut self.bytes[open.len..]) {
            return false;
        }
        open.add(head, data.len());
        self.bytes[headers.tcp + FLAGS] |= head[headers.tcp + FLAGS];
        true
    }

    /// Begins with `segment`, if something may follow it and long packets of its kind are `wanted`; false if
    /// not. What was there is gone.
    pub fn begin(&mut self, segment: &[u8], wanted: impl FnOnce(Version) -> bool) -> bool {
        self.open = None;
        self.ack = None;
        let segment = unfilled(segment);
        let Some(headers) = Headers::find(segment) else { return false };
        let (head, data) = segment.split_at(headers.data);
        if data.is_empty() {
            self.ack = Ack::new(headers, head).filter(|_| wanted(headers.version));
            self.bytes[..head.len()].copy_from_slice(head);
            return self.ack.is_some();
        }
        let last = head[headers.tcp + FLAGS] & PSH != 0;
        if data.len() < LEAST || last || !wanted(headers.version) {
            return false;
        }
        let (to_head, to_data) = self.bytes.split_at_mut(headers.data);
        if !headers.copy(head, data, to_data) {
            return false;
        }
        to_head.copy_from_slice(head);
        let mut open = Open {
            headers,
            same: headers.same(head),
            len: headers.data,
            size: data.len(),
            segments: 0,
            next: headers.word(head, SEQUENCE),
            full: false,
        };
        open.add(head, data.len());
        self.open = Some(open);
        true
    }

    /// The packet, if there is one; a new one begins.
    pub fn take(&mut self) -> Option<Frame<'_>> {
        if let Some(ack) = self.ack.take() {
            return Frame::new(&mut self.bytes[..ack.len()], Offload::default(), &mut []);
        }
        let Open { headers: Headers { version, tcp, .. }, len, size, segments, .. } =
            self.open.take()?;
        let bytes = &mut self.bytes[..len];
        if segments == 1 {
            return Frame::new(bytes, Offload::default(), &mut []);
        }
        let start = tcp as u16;
        let (ip, rest) = bytes[ETHERNET..].split_at_mut(tcp - ETHERNET);
        let pseudo = version.write_length(ip, rest.len(), 0);
        rest[CHECKSUM.into()..][..2].copy_from_slice(&folded(pseudo).to_be_bytes());
        let offload = Offload {
            checksum: Some(Partial { start, offset: CHECKSUM }),
            division: Some(Division { version, size: size as u16 }),
        };
        Frame::new(bytes, offload, &mut self.spare)
    }
}

impl Open {
    /// One more, with this header and so much data.
    fn add(&mut self, head: &[u8], data: usize) {
        self.len += data;
        self.segments += 1;
        self.next = self.next.wrapping_add(data as u32);
        self.full = data < self.size || head[self.headers.tcp + FLAGS] & PSH != 0;
    }
}

impl Headers {
    /// Those of a segment without anything odd.
    fn find(frame: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        let byte = |at: usize| frame.get(at).copied();
        let ip = ETHERNET;
        let (version, tcp, end) = match (word(12)?, byte(ip)?) {
            // No options, and no fragment.
            (0x0800, 0x45) if word(ip + 6)? & 0xbfff == 0 && byte(ip + 9)? == PROTOCOL => {
                (Version::V4, ip + 20, ip + usize::from(word(ip + 2)?))
            }
            (0x86dd, 0x60..=0x6f) if byte(ip + 6)? == PROTOCOL => {
                (Version::V6, ip + 40, ip + 40 + usize::from(word(ip + 4)?))
            }
            _ => return None,
        };
        let header = usize::from(byte(tcp + OFFSET)? >> 4) * 4;
        let data = tcp + header;
        let plain = byte(tcp + FLAGS)? & !PSH == ACK;
        let fine = plain && header >= TCP && data <= end && end == frame.len();
        let right = || version == Version::V6 || folded(sum(&frame[ip..tcp])) == u16::MAX;
        (fine && frame.len() <= LONGEST_SEGMENT && right()).then_some(Self { version, tcp, data })
    }

    /// The word at `at` of TCP's header.
    fn word(&self, head: &[u8], at: usize) -> u32 {
        let at = self.tcp + at;
        u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
    }

    /// `head` without what differs from segment to segment.
    fn same(&self, head: &[u8]) -> [u8; HEADERS] {
        let mut same = [0; HEADERS];
        same[..self.data].copy_from_slice(head);
        let mut clear = |at: usize, len: usize| same[at..at + len].fill(0);
        match self.version {
            // Length and identification, checksum.
            Version::V4 => {
                clear(ETHERNET + 2, 4);
                clear(ETHERNET + 10, 2);
            }
            Version::V6 => clear(ETHERNET + 4, 2),
        }
        clear(self.tcp + SEQUENCE, 4);
        clear(self.tcp + usize::from(CHECKSUM), 2);
        same[self.tcp + FLAGS] &= !PSH;
        same
    }

    /// Copies `data` to `out`; false if the checksum is wrong.
    fn copy(&self, head: &[u8], data: &[u8], out: &mut [u8]) -> bool {
        let (ip, tcp) = head[ETHERNET..].split_at(self.tcp - ETHERNET);
        let pseudo = self.version.pseudo(ip, tcp.len() + data.len());
        folded(pseudo + sum(tcp) + copy_and_sum(data, &mut out[..data.len()])) == u16::MAX
    }
}

#[cfg(test)]
mod tests;
