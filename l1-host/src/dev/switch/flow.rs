//! Tells flows of frames apart, so that a card with several queues may be given each flow's in one of them.
//! May: nothing. Context: any. Input: guest-controlled frames.
//!
//! Frames of a flow keep their order as long as they come to one queue. So what is told must be the same for all of
//! them: ports count for TCP alone, whose segments are whole packets. A datagram of UDP may come in fragments, of which only
//! the first has ports; all that go from one address to another are one flow.

use super::ETHERNET;

/// Number of TCP in IP headers.
const TCP: u8 = 6;
/// Of IPv4's third word: more fragments follow, or it is not the first.
const FRAGMENT: u16 = 0x3fff;

/// Which of `queues`, 1 or more, the flow of `frame` comes to. It is the same for both directions of a flow.
#[must_use]
pub fn queue(frame: &[u8], queues: usize) -> usize {
    // A multiple of the golden ratio spreads numbers that follow one another, as a client's ports do.
    let hash = number(frame).unwrap_or(0).wrapping_mul(0x9e37_79b1);
    ((hash >> 16) as usize * queues) >> 16
}

/// A number of its flow; `None` for what is no IP, or within a tag.
fn number(frame: &[u8]) -> Option<u32> {
    let ip = frame.get(ETHERNET..)?;
    match frame[12..ETHERNET] {
        [8, 0] => {
            let (from, to) = (word(ip, 12)?, word(ip, 16)?);
            let tcp = ip[9] == TCP && half(ip, 6)? & FRAGMENT == 0;
            let ports = if tcp { ports(ip, usize::from(ip[0] & 0xf) * 4) } else { Some(0) };
            Some((from ^ to).wrapping_add(ports?))
        }
        [0x86, 0xdd] => {
            let addresses = ip.get(8..40)?.as_chunks::<4>().0;
            let mixed = addresses.iter().fold(0, |mixed, word| mixed ^ u32::from_be_bytes(*word));
            let ports = if ip[6] == TCP { ports(ip, 40) } else { Some(0) };
            Some(mixed.wrapping_add(ports?))
        }
        _ => None,
    }
}

/// Both ports of the TCP header `at` bytes into `ip`, whichever is whose.
fn ports(ip: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(half(ip, at)? ^ half(ip, at + 2)?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::{
        super::segment::{Version, fixture::packet},
        *,
    };
    use proptest::prelude::*;
    use std::{collections::BTreeSet, vec::Vec};

    const PROTOCOL: usize = ETHERNET + 9;
    const PORTS: usize = ETHERNET + 20;

    fn tcp(ports: [u16; 2]) -> Vec<u8> {
        let (mut frame, _) = packet(Version::V4, 0, 100, 0x10);
        for (port, at) in ports.into_iter().zip([PORTS, PORTS + 2]) {
            frame[at..at + 2].copy_from_slice(&port.to_be_bytes());
        }
        frame
    }

    #[test]
    fn flows_of_tcp_are_spread() {
        for queues in [2, 3, 4] {
            let mut count = [0; 4];
            for port in 40_000..40_400 {
                count[queue(&tcp([port, 80]), queues)] += 1;
            }
            let expected = 400 / queues;
            let fair = expected / 2..expected * 2;
            assert!(count[..queues].iter().all(|count| fair.contains(count)), "{count:?}");
            assert_eq!(count[..queues].iter().sum::<usize>(), 400);
        }
        assert_eq!(queue(&tcp([1, 2]), 1), 0);
    }

    #[test]
    fn both_directions_are_one_flow() {
        for port in 0..50 {
            let mut back = tcp([80, 5000 + port]);
            let (from, to) = (back[26..30].to_vec(), back[30..34].to_vec());
            back[26..30].copy_from_slice(&to);
            back[30..34].copy_from_slice(&from);
            assert_eq!(number(&back), number(&tcp([5000 + port, 80])));
        }
        let (mut frame, _) = packet(Version::V6, 0, 10, 0x10);
        let there = number(&frame);
        let halves = [frame[22..38].to_vec(), frame[38..54].to_vec()];
        frame[22..38].copy_from_slice(&halves[1]);
        frame[38..54].copy_from_slice(&halves[0]);
        frame[54..58].rotate_left(2);
        assert_eq!(number(&frame), there);
        frame[55] ^= 1;
        assert_ne!(number(&frame), there, "another port");
    }

    #[test]
    fn fragments_stay_together() {
        let places = |protocol: u8, fragment: [u8; 2]| {
            let numbers = (0..20_u16).map(|port| {
                let mut frame = tcp([port, 80]);
                frame[PROTOCOL] = protocol;
                frame[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&fragment);
                number(&frame)
            });
            numbers.collect::<BTreeSet<_>>().len()
        };
        assert_eq!(places(TCP, [0x40, 0]), 20, "it is not to be fragmented, and is not");
        assert_eq!(places(TCP, [0x20, 0]), 1, "the first");
        assert_eq!(places(TCP, [0, 5]), 1, "the last");
        assert_eq!(places(17, [0, 0]), 1, "others of the flow may be");
    }

    #[test]
    fn what_is_no_ip_comes_to_the_first() {
        let mut frame = tcp([1, 2]);
        for kind in [[8, 6], [0x81, 0], [0, 0]] {
            frame[12..14].copy_from_slice(&kind);
            assert_eq!(queue(&frame, 4), 0);
        }
        assert_eq!(queue(&frame[..ETHERNET], 4), 0);
    }

    proptest! {
        /// No frame is too odd.
        #[test]
        fn any_frame_has_a_queue(
            bytes in prop::collection::vec(any::<u8>(), ETHERNET..100),
            kind in 0..3usize,
            queues in 1..5usize,
        ) {
            let mut bytes = bytes;
            bytes[12..14].copy_from_slice(&[[8, 0], [0x86, 0xdd], [0x81, 0]][kind]);
            prop_assert!(queue(&bytes, queues) < queues);
        }
    }
}
