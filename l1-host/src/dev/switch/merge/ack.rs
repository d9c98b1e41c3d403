//! Acknowledgements of which the last says it all.
//! May: nothing. Context: run-loop, irq-off. Input: frames from the network.
//!
//! RFC 3449 section 5.2.1, "ACK filtering". An acknowledgement is cumulative: one that acknowledges more makes
//! those before it superfluous, unless they say something else, as one does that acknowledges nothing new.

use super::{
    super::{
        ETHERNET,
        segment::{FLAGS, SEQUENCE, TCP},
    },
    ACK, HEADERS, Headers,
};

/// Bytes of the shortest frame on a wire, with what fills it up.
const SHORTEST: usize = 60;
/// Where TCP's header has what is acknowledged, and the window.
const ACKNOWLEDGED: usize = 8;
const WINDOW: usize = 14;
/// The one option: two fillers, and the time stamps, as every sender writes them (RFC 7323 appendix A).
const STAMPS: [u8; 4] = [1, 1, 8, 10];
/// Bytes of a header with it, and where the sender's stamp is.
const STAMPED: usize = TCP + 12;
const STAMP: usize = TCP + STAMPS.len();

/// A segment that acknowledges, and does nothing else: its headers, which are all of it.
#[derive(Debug)]
pub struct Ack(Headers);

impl Ack {
    /// The one in `frame`, which has these headers and no data, if its checksum is right too.
    pub(super) fn new(headers: Headers, frame: &[u8]) -> Option<Self> {
        let tcp = &frame[headers.tcp..];
        let plain = tcp.len() == TCP || tcp.len() == STAMPED && tcp[TCP..STAMP] == STAMPS;
        let fine = plain && tcp[FLAGS] == ACK && headers.copy(frame, &[], &mut []);
        fine.then_some(Self(headers))
    }

    /// Bytes of the frame.
    pub const fn len(&self) -> usize {
        self.0.data
    }

    /// Puts the one in `frame` in the place of this one, which is at `bytes`, if it makes it superfluous.
    pub fn replace(&self, bytes: &mut [u8], frame: &[u8]) -> bool {
        let headers = self.0;
        let (new, old) = (unfilled(frame), &mut bytes[..self.len()]);
        let same = Headers::find(new) == Some(headers) && headers.data == new.len();
        if !same || Self::new(headers, new).is_none() {
            return false;
        }
        let gone_by = |at| headers.word(new, at).wrapping_sub(headers.word(old, at)).cast_signed();
        let superfluous = self.rest(new) == self.rest(old)
            && gone_by(SEQUENCE) == 0
            && gone_by(ACKNOWLEDGED) > 0
            // Else the receiver takes it for an old one.
            && (!self.is_stamped() || gone_by(STAMP) >= 0);
        if superfluous {
            old.copy_from_slice(new);
        }
        superfluous
    }

    const fn is_stamped(&self) -> bool {
        self.0.data == self.0.tcp + STAMPED
    }

    /// `frame` without what may differ.
    fn rest(&self, frame: &[u8]) -> [u8; HEADERS] {
        let mut rest = self.0.same(frame);
        let tcp = &mut rest[self.0.tcp..];
        tcp[ACKNOWLEDGED..][..4].fill(0);
        tcp[WINDOW..][..2].fill(0);
        if self.is_stamped() {
            tcp[STAMP..STAMPED].fill(0);
        }
        rest
    }
}

/// `frame` without what fills up a short one.
pub fn unfilled(frame: &[u8]) -> &[u8] {
    let end = match frame.get(ETHERNET - 2..ETHERNET + 4) {
        Some(&[0x08, 0x00, _, _, high, low]) => {
            ETHERNET + usize::from(u16::from_be_bytes([high, low]))
        }
        _ => frame.len(),
    };
    if frame.len() <= SHORTEST { frame.get(..end).unwrap_or(frame) } else { frame }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            super::segment::{
                CHECKSUM, Version,
                fixture::{mend, packet},
            },
            Merger,
        },
        *,
    };
    use proptest::prelude::*;
    use std::vec::Vec;

    /// An acknowledgement of `upto`, changed by `change` before its checksums are made.
    fn ack(version: Version, upto: u32, change: impl FnOnce(&mut Vec<u8>, usize)) -> Vec<u8> {
        let (mut frame, partial) = packet(version, 12, 0, ACK);
        let tcp = usize::from(partial.start);
        frame[tcp + ACKNOWLEDGED..][..4].copy_from_slice(&upto.to_be_bytes());
        frame[tcp + TCP..][..STAMPS.len()].copy_from_slice(&STAMPS);
        change(&mut frame, tcp);
        mend(&mut frame, version, tcp);
        frame
    }

    /// What comes of two.
    fn sent(first: &[u8], second: &[u8]) -> Vec<Vec<u8>> {
        let mut merger = Merger::default();
        let mut sent = Vec::new();
        for frame in [first, second] {
            if merger.extend(frame) {
                continue;
            }
            sent.extend(merger.take().map(|held| held.bytes.to_vec()));
            if !merger.begin(frame, |_| true) {
                sent.push(frame.to_vec());
            }
        }
        sent.extend(merger.take().map(|held| held.bytes.to_vec()));
        sent
    }

    const OLD: u32 = 0xffff_fff0;

    #[test]
    fn what_says_something_else_stays() {
        let first = ack(Version::V4, OLD, |_, _| {});
        let both = |upto, change: fn(&mut Vec<u8>, usize)| {
            let second = ack(Version::V4, upto, change);
            sent(&first, &second) == [first.clone(), second]
        };
        assert!(!both(5, |_, _| {}), "one that wraps makes the first superfluous");
        assert!(!both(5, |frame, tcp| frame[tcp + WINDOW] ^= 1), "the window is the last one's");
        assert!(!both(5, |frame, tcp| frame[tcp + STAMP + 3] ^= 2), "so are the stamps");
        assert!(both(OLD, |_, _| {}), "nothing new is acknowledged");
        assert!(both(OLD - 1, |_, _| {}), "it is older");
        assert!(both(5, |frame, tcp| frame[tcp + FLAGS] |= 1), "it is the last");
        assert!(both(5, |frame, tcp| frame[tcp + FLAGS] |= 0x40), "congestion is told of");
        assert!(both(5, |frame, tcp| frame[tcp + FLAGS] |= 8), "a push");
        assert!(both(5, |frame, tcp| frame[tcp + 7] += 1), "another place in the stream");
        assert!(both(5, |frame, tcp| frame[tcp + 1] += 1), "another port");
        assert!(both(5, |frame, tcp| frame[tcp + TCP + 2] = 5), "lost segments are told of");
        assert!(both(5, |frame, tcp| frame[tcp + STAMP] -= 1), "it was sent earlier");
        assert!(both(5, |frame, _| frame[ETHERNET + 1] = 3), "congestion was met");
        assert!(both(5, |frame, _| frame.push(0)), "it has data");
        let mut wrong = ack(Version::V4, 5, |_, _| {});
        wrong[34 + usize::from(CHECKSUM)] ^= 1;
        assert_eq!(sent(&first, &wrong), [first, wrong], "its checksum is wrong");
    }

    #[test]
    fn what_fills_a_frame_up_is_no_data() {
        let short = |upto| {
            let mut frame = ack(Version::V4, upto, |frame, tcp| {
                frame.truncate(tcp + TCP);
                frame[tcp + 12] = 5 << 4;
            });
            let len = frame.len();
            frame.resize(SHORTEST, 0);
            (frame, len)
        };
        let ((first, _), (second, len)) = (short(OLD), short(5));
        assert_eq!(sent(&first, &second), [second[..len].to_vec()]);
    }

    proptest! {
        /// The last of those that came is passed on, and of each that acknowledges nothing new, it and
        /// the one before.
        #[test]
        fn the_last_is_passed_on(v6: bool, steps in prop::collection::vec(0..3_u32, 1..40)) {
            let version = if v6 { Version::V6 } else { Version::V4 };
            let mut upto = OLD;
            let mut merger = Merger::default();
            let (mut expected, mut got) = (Vec::<u32>::new(), Vec::new());
            for step in steps {
                if step > 0 {
                    expected.pop();
                }
                upto = upto.wrapping_add(step);
                expected.push(upto);
                let frame = ack(version, upto, |_, _| {});
                if !merger.extend(&frame) {
                    got.extend(merger.take().map(|held| held.bytes.to_vec()));
                    prop_assert!(merger.begin(&frame, |_| true));
                }
            }
            got.extend(merger.take().map(|held| held.bytes.to_vec()));
            let expected: Vec<_> = expected.iter().map(|&upto| ack(version, upto, |_, _| {})).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
