//! Divides a long TCP packet into segments, for a receiver that does not take it whole.
//! May: nothing. Context: any. Input: guest-controlled frames and what is said of them.

use super::{
    ETHERNET,
    frame::{Partial, checksum, copy_and_sum, folded, sum},
};

/// Bytes of data in a segment, at least: it bounds how many there are.
const LEAST: u16 = 128;
/// Bytes of the longest segment: data as in the longest packet of a card, and headers.
pub const LONGEST_SEGMENT: usize = 9000 + ETHERNET + 4;
/// Where a TCP header has its fields, and how long it is at least.
pub(super) const SEQUENCE: usize = 4;
pub(super) const OFFSET: usize = 12;
pub(super) const FLAGS: usize = 13;
pub(super) const CHECKSUM: u16 = 16;
pub(super) const TCP: usize = 20;
/// Flags of the last segment alone, FIN and PSH, and of the first, CWR.
const LAST_ONLY: u8 = 0x09;
const FIRST_ONLY: u8 = 0x80;
/// Number of TCP in IP headers.
pub(super) const PROTOCOL: u8 = 6;

/// What a packet is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// How a frame is to be divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// What the packet is of.
    pub version: Version,
    /// Bytes of data in each segment but the last.
    pub size: u16,
}

/// A frame that can be divided.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    frame: &'a [u8],
    division: Division,
    /// Where the TCP header starts, and where it ends.
    tcp: usize,
    data: usize,
}

impl<'a> Segments<'a> {
    /// The segments of `frame` by `division`; `None` if that does not fit it.
    #[must_use]
    pub fn new(frame: &'a [u8], sum: Partial, division: Division) -> Option<Self> {
        let tcp = usize::from(sum.start);
        let ip = frame.get(ETHERNET..tcp)?;
        let fits = match division.version {
            Version::V4 => {
                frame[12..ETHERNET] == [8, 0]
                    && ip.len() >= 20
                    && ip[0] == 0x40 | (ip.len() / 4) as u8
                    && ip.len().is_multiple_of(4)
                    && ip[9] == PROTOCOL
            }
            Version::V6 => frame[12..ETHERNET] == [0x86, 0xdd] && ip.len() >= 40 && ip[0] >> 4 == 6,
        };
        let header = usize::from(frame.get(tcp + OFFSET)? >> 4) * 4;
        let data = tcp + header;
        let fine = fits
            && sum.offset == CHECKSUM
            && header >= TCP
            && data < frame.len()
            && division.size >= LEAST
            && data + usize::from(division.size) <= LONGEST_SEGMENT;
        fine.then_some(Self { frame, division, tcp, data })
    }

    /// Bytes before the data.
    #[must_use]
    pub const fn header(&self) -> usize {
        self.data
    }

    /// Bytes of the longest.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.frame.len().min(self.data + usize::from(self.division.size))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        (self.frame.len() - self.data).div_ceil(self.division.size.into())
    }

    /// Writes segment `number` to `out`, [`LONGEST_SEGMENT`] bytes, its checksum left undone; how many bytes
    /// that are.
    #[must_use]
    pub fn write(&self, number: usize, out: &mut [u8]) -> usize {
        let data = self.data_of(number);
        let (head, rest) = out.split_at_mut(self.data);
        rest[..data.len()].copy_from_slice(data);
        self.write_head(number, head, data.len());
        self.data + data.len()
    }

    /// The same with its checksum, in as many bytes as it has.
    #[must_use]
    pub fn write_completed(&self, number: usize, out: &mut [u8]) -> usize {
        let data = self.data_of(number);
        let (head, rest) = out.split_at_mut(self.data);
        let of_data = copy_and_sum(data, &mut rest[..data.len()]);
        self.write_head(number, head, data.len());
        // A header is a whole number of words, so the data's are those of the whole.
        let tcp = &mut head[self.tcp..];
        let sum = checksum(sum(tcp) + of_data);
        tcp[CHECKSUM.into()..][..2].copy_from_slice(&sum);
        self.data + data.len()
    }

    fn data_of(&self, number: usize) -> &[u8] {
        let size = usize::from(self.division.size);
        let data = &self.frame[self.data + number * size..];
        &data[..data.len().min(size)]
    }

    /// Writes the headers of segment `number`, which has `len` bytes of data, to `head`; its checksum is the
    /// sum of addresses and length.
    fn write_head(&self, number: usize, head: &mut [u8], len: usize) {
        let size = usize::from(self.division.size);
        head.copy_from_slice(&self.frame[..self.data]);
        let (ip, tcp) = head[ETHERNET..].split_at_mut(self.tcp - ETHERNET);
        let pseudo = self.division.version.write_length(ip, tcp.len() + len, number);
        let mut sequence = [0; 4];
        sequence.copy_from_slice(&tcp[SEQUENCE..SEQUENCE + 4]);
        let sequence = u32::from_be_bytes(sequence).wrapping_add((number * size) as u32);
        tcp[SEQUENCE..SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
        if number + 1 < self.count() {
            tcp[FLAGS] &= !LAST_ONLY;
        }
        if number > 0 {
            tcp[FLAGS] &= !FIRST_ONLY;
        }
        tcp[CHECKSUM.into()..][..2].copy_from_slice(&folded(pseudo).to_be_bytes());
    }
}

impl Version {
    /// Fills in what a header of IP, `ip`, says of packet `number` with `len` bytes of TCP, counted from the one
    /// that it is of; the sum of the pseudo-header.
    pub(super) fn write_length(self, ip: &mut [u8], len: usize, number: usize) -> u64 {
        match self {
            Self::V4 => {
                let total = (ip.len() + len) as u16;
                ip[2..4].copy_from_slice(&total.to_be_bytes());
                let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(number as u16);
                ip[4..6].copy_from_slice(&id.to_be_bytes());
                ip[10..12].fill(0);
                let checksum = !folded(sum(ip));
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            Self::V6 => {
                let total = (ip.len() - 40 + len) as u16;
                ip[4..6].copy_from_slice(&total.to_be_bytes());
            }
        }
        self.pseudo(ip, len)
    }

    /// The sum of the pseudo-header of `len` bytes of TCP behind `ip`.
    pub(super) fn pseudo(self, ip: &[u8], len: usize) -> u64 {
        let addresses = match self {
            Self::V4 => &ip[12..20],
            Self::V6 => &ip[8..40],
        };
        sum(addresses) + u64::from(PROTOCOL) + len as u64
    }
}

#[cfg(test)]
pub(in crate::dev) mod fixture {
    use super::*;
    use crate::dev::switch::frame::{Frame, Offload};
    use std::{vec, vec::Vec};

    /// A packet that is to be divided, with so many bytes of options and of data.
    pub fn packet(version: Version, options: usize, data: usize, flags: u8) -> (Vec<u8>, Partial) {
        let mut frame = vec![0u8; 12];
        match version {
            Version::V4 => {
                frame.extend([8, 0, 0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, 6, 0, 0]);
                frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            }
            Version::V6 => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64]);
                frame.extend(0..32u8);
            }
        }
        let start = frame.len() as u16;
        // Ports, a sequence number that wraps, acknowledged; flags; a checksum that is to be replaced.
        frame.extend([0, 80, 1, 2, 0xff, 0xff, 0xff, 0x00, 1, 2, 3, 4]);
        frame.extend([((20 + options) * 4) as u8, flags, 1, 0, 0xaa, 0xbb, 0, 0]);
        frame.extend(vec![1; options]);
        frame.extend((0..data).map(|at| (at * 31 + at / 251) as u8));
        (frame, Partial { start, offset: CHECKSUM })
    }

    /// Completes length and checksums of a packet that was changed, with TCP's header at `tcp`.
    pub fn mend(frame: &mut [u8], version: Version, tcp: usize) {
        let (ip, rest) = frame[ETHERNET..].split_at_mut(tcp - ETHERNET);
        let pseudo = version.write_length(ip, rest.len(), 0);
        rest[CHECKSUM.into()..][..2].copy_from_slice(&folded(pseudo).to_be_bytes());
        let checksum = Some(Partial { start: tcp as u16, offset: CHECKSUM });
        let offload = Offload { checksum, division: None };
        Frame::new(frame, offload, &mut []).unwrap().complete_checksum();
    }
}

#[cfg(test)]
mod tests {
    use super::{fixture::packet, *};
    use crate::dev::switch::frame::{Frame, Offload};
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    fn division(version: Version, size: u16) -> Division {
        Division { version, size }
    }

    /// CWR ACK PSH FIN.
    const ENDS: u8 = 0x99;

    proptest! {
        /// Segments carry the data in order, each with headers that are right.
        #[test]
        fn segments_are_whole_packets(
            v6 in any::<bool>(),
            options in (0..11usize).prop_map(|words| 4 * words),
            data in 1..20_000usize,
            size in LEAST..2000,
        ) {
            let version = if v6 { Version::V6 } else { Version::V4 };
            let (frame, partial) = packet(version, options, data, ENDS);
            let segments = Segments::new(&frame, partial, division(version, size)).unwrap();
            let (tcp, header) = (usize::from(partial.start), segments.header());
            let mut joined = Vec::<u8>::new();
            for number in 0..segments.count() {
                let mut out = vec![0; LONGEST_SEGMENT];
                let len = segments.write(number, &mut out);
                let out = &mut out[..len];
                let offload = Offload { checksum: Some(partial), division: None };
                Frame::new(out, offload, &mut []).unwrap().complete_checksum();
                let mut whole = vec![0; len];
                prop_assert_eq!(segments.write_completed(number, &mut whole), len);
                prop_assert_eq!(&whole[..], &*out, "both ways are the same");
                let ip = &out[ETHERNET..tcp];
                let (length, addresses) = match version {
                    Version::V4 => {
                        prop_assert_eq!(folded(sum(ip)), 0xffff, "the header's checksum");
                        let id = 0xfffeu16.wrapping_add(number as u16);
                        prop_assert_eq!(&ip[4..6], &id.to_be_bytes());
                        (u16::from_be_bytes([ip[2], ip[3]]) as usize + ETHERNET, &ip[12..20])
                    }
                    Version::V6 => {
                        (u16::from_be_bytes([ip[4], ip[5]]) as usize + ETHERNET + 40, &ip[8..40])
                    }
                };
                prop_assert_eq!(length, len);
                let pseudo = sum(addresses) + 6 + (len - tcp) as u64;
                prop_assert_eq!(folded(pseudo + sum(&out[tcp..])), 0xffff, "TCP's checksum");
                let sequence = 0xffff_ff00u32.wrapping_add(joined.len() as u32);
                prop_assert_eq!(&out[tcp + 4..tcp + 8], &sequence.to_be_bytes());
                let (first, last) = (number == 0, number + 1 == segments.count());
                let flags = 0x10 | if first { 0x80 } else { 0 } | if last { 9 } else { 0 };
                prop_assert_eq!(out[tcp + FLAGS], flags);
                prop_assert!(len - header == usize::from(size) || last);
                joined.extend(&out[header..]);
            }
            prop_assert_eq!(&joined[..], &frame[header..]);
        }

        /// Whatever is said of whatever frame, either it can be divided, into not too many, or not.
        #[test]
        fn odd_frames_are_refused(
            bytes in prop::collection::vec(any::<u8>(), ETHERNET..300),
            start in 0..300u16,
            size in any::<u16>(),
            patch in any::<bool>(),
            v6 in any::<bool>(),
        ) {
            let mut frame = bytes;
            let version = if v6 { Version::V6 } else { Version::V4 };
            if patch {
                let (good, _) = packet(version, 0, 1, ENDS);
                let len = good.len().min(frame.len());
                frame[..len - 8].copy_from_slice(&good[..len - 8]);
            }
            let partial = Partial { start, offset: CHECKSUM };
            if let Some(segments) = Segments::new(&frame, partial, division(version, size)) {
                prop_assert!(segments.count() <= frame.len() / usize::from(LEAST) + 1);
                let mut out = vec![0; LONGEST_SEGMENT];
                for number in 0..segments.count() {
                    prop_assert!(segments.write(number, &mut out) <= LONGEST_SEGMENT);
                }
            }
        }
    }
}
