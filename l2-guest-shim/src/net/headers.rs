//! Finds the headers of a frame whose checksum is still to be made.
//! May: nothing. Context: shim. Input: guest-controlled frames.
//!
//! Xen's front ends say that a checksum is missing, virtio wants to know where. What is found here may be
//! wrong by the time it is used, for the kernel can write to the frame; L1 has to check it in any case.

/// A protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Where its checksum is in its header.
    #[must_use]
    pub const fn checksum(self) -> u16 {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// What a frame's headers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// What is in the frame.
    pub transport: Transport,
    /// Where its header begins.
    pub start: u16,
    /// Where its data begins.
    pub data: u16,
}

/// VLAN tags that a frame may have.
const TAGS: usize = 2;
/// Headers between those of IPv6 and the next protocol's.
const EXTENSIONS: usize = 8;

/// Finds the headers in the frame whose bytes `byte` gives; `None` for what has no checksum of a known
/// kind.
#[must_use]
pub fn find(byte: impl Fn(usize) -> Option<u8>) -> Option<Headers> {
    let word = |at| Some(u16::from_be_bytes([byte(at)?, byte(at + 1)?]));
    let mut at = 12;
    let mut tags = 0;
    let kind = loop {
        let kind = word(at)?;
        at += 2;
        match kind {
            0x8100 | 0x88a8 if tags < TAGS => {
                tags += 1;
                at += 2;
            }
            kind => break kind,
        }
    };
    let (protocol, start) = match kind {
        0x0800 => (byte(at + 9)?, at + usize::from(byte(at)? & 15) * 4),
        0x86dd => after_extensions(&byte, byte(at + 6)?, at + 40)?,
        _ => return None,
    };
    let (transport, length) = match protocol {
        6 => (Transport::Tcp, usize::from(byte(start + 12)? >> 4) * 4),
        17 => {
            // All of its header is in the frame, as for TCP.
            byte(start + 7)?;
            (Transport::Udp, 8)
        }
        _ => return None,
    };
    let (start, data) = (u16::try_from(start).ok()?, u16::try_from(start + length).ok()?);
    Some(Headers { transport, start, data })
}

/// The first header from `at` on that is none of IPv6's own, and its number.
fn after_extensions(
    byte: impl Fn(usize) -> Option<u8>,
    mut next: u8,
    mut at: usize,
) -> Option<(u8, usize)> {
    for _ in 0..EXTENSIONS {
        // Hop-by-hop and destination options, routing.
        if !matches!(next, 0 | 43 | 60) {
            return Some((next, at));
        }
        next = byte(at)?;
        at += (usize::from(byte(at + 1)?) + 1) * 8;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(frame: &[u8]) -> Option<Headers> {
        find(|at| frame.get(at).copied())
    }

    /// Addresses, what `kinds` says, an IPv4 header of `words`, then 20 bytes with a length in them.
    fn v4(kinds: &[u8], words: u8, protocol: u8) -> Vec<u8> {
        let mut frame = [&[0; 12], kinds].concat();
        let ip = frame.len();
        frame.resize(ip + usize::from(words) * 4 + 20, 0);
        frame[ip] = 0x40 | words;
        frame[ip + 9] = protocol;
        let transport = ip + usize::from(words) * 4;
        frame[transport + 12] = 0x80;
        frame
    }

    #[test]
    fn tcp_and_udp_over_ipv4() {
        let (tcp, udp) = (Transport::Tcp, Transport::Udp);
        let expect = |transport, start, data| Some(Headers { transport, start, data });
        assert_eq!(headers(&v4(&[8, 0], 5, 6)), expect(tcp, 34, 66));
        assert_eq!(headers(&v4(&[8, 0], 15, 17)), expect(udp, 74, 82));
        assert_eq!(headers(&v4(&[0x81, 0, 0, 5, 8, 0], 5, 6)), expect(tcp, 38, 70));
        let two = [0x88, 0xa8, 0, 1, 0x81, 0, 0, 5, 8, 0];
        assert_eq!(headers(&v4(&two, 5, 17)), expect(udp, 42, 50));
        assert_eq!((tcp.checksum(), udp.checksum()), (16, 6));
    }

    #[test]
    fn ipv6_with_extensions() {
        let mut frame = vec![0; 14 + 40 + 8 + 24 + 20];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[14 + 6] = 17;
        let expect = |transport, start, data| Some(Headers { transport, start, data });
        assert_eq!(headers(&frame), expect(Transport::Udp, 54, 62));
        frame[14 + 6] = 0;
        frame[54] = 60;
        frame[62..64].copy_from_slice(&[6, 2]);
        frame[86 + 12] = 0x50;
        assert_eq!(headers(&frame), expect(Transport::Tcp, 86, 106));
        frame[54] = 44;
        assert_eq!(headers(&frame), None, "a fragment");
        frame.fill(0);
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(headers(&frame), None, "options without end");
    }

    #[test]
    fn what_has_no_checksum() {
        assert_eq!(headers(&v4(&[8, 6], 5, 6)), None, "ARP");
        assert_eq!(headers(&v4(&[8, 0], 5, 1)), None, "ICMP");
        assert_eq!(headers(&v4(&[8, 0], 5, 6)[..40]), None, "cut short");
        assert_eq!(headers(&v4(&[8, 0], 5, 17)[..34]), None, "UDP, cut short");
        assert_eq!(headers(&[]), None);
        let three = [0x81, 0, 0, 5, 0x81, 0, 0, 5, 0x81, 0, 0, 5, 8, 0];
        assert_eq!(headers(&v4(&three, 5, 6)), None);
    }

    proptest! {
        #[test]
        fn any_frame(mut frame in prop::collection::vec(any::<u8>(), 0..200), kind in 0..3usize) {
            if let Some(place) = frame.get_mut(12..14) {
                place.copy_from_slice(&[[8, 0], [0x86, 0xdd], [0x81, 0]][kind]);
            }
            if let Some(Headers { start, .. }) = headers(&frame) {
                prop_assert!(usize::from(start) < frame.len());
            }
        }
    }
}
