//! Describes a frame, and does for its receiver what its sender has left undone.
//! May: nothing. Context: any. Input: guest-controlled frames and what is said of them.

use super::{
    ETHERNET, LONGEST,
    segment::{Division, Segments},
};

/// A frame on its way.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Its bytes, from the receiver's address on: [`ETHERNET`] to [`LONGEST`].
    pub bytes: &'a mut [u8],
    /// What is left undone.
    pub offload: Offload,
    /// Where its segments are made, [`super::segment::LONGEST_SEGMENT`] bytes, if it may have any.
    spare: &'a mut [u8],
}

/// What a frame's sender has left to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum of what the frame carries.
    pub checksum: Option<Partial>,
    /// Its division into segments.
    pub division: Option<Division>,
}

/// A checksum that holds only the sum of addresses and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Where what it is of starts, to the frame's end.
    pub start: u16,
    /// Where it is, from there.
    pub offset: u16,
}

impl<'a> Frame<'a> {
    /// The frame in `bytes`; `None` if it is no frame, or `offload` does not fit it.
    #[must_use]
    pub fn new(bytes: &'a mut [u8], offload: Offload, spare: &'a mut [u8]) -> Option<Self> {
        let sum_fits = offload.checksum.is_none_or(|sum| {
            let place = usize::from(sum.start) + usize::from(sum.offset);
            usize::from(sum.start) >= ETHERNET && place + 2 <= bytes.len()
        });
        let division_fits = offload.division.is_none_or(|division| {
            let sum = offload.checksum;
            sum.is_some_and(|sum| Segments::new(bytes, sum, division).is_some())
        });
        let fine = (ETHERNET..=LONGEST).contains(&bytes.len()) && sum_fits && division_fits;
        fine.then_some(Self { bytes, offload, spare })
    }

    fn segments(&self) -> Option<Segments<'_>> {
        let (sum, division) = self.offload.checksum.zip(self.offload.division)?;
        Segments::new(self.bytes, sum, division)
    }

    /// Bytes of the longest frame that this is made of.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.segments().map_or(self.bytes.len(), |segments| segments.longest())
    }

    /// Bytes of headers that all segments have; 0 of a frame that is not to be divided.
    #[must_use]
    pub fn header(&self) -> usize {
        self.segments().map_or(0, |segments| segments.header())
    }

    /// The frames that this is made of, with nothing left undone.
    #[must_use]
    pub fn completed(&self) -> Completed<'_> {
        Completed { bytes: self.bytes, checksum: self.offload.checksum, segments: self.segments() }
    }

    /// Calls `visit` with the frames that this is made of: itself, or its segments.
    pub fn divide(&mut self, mut visit: impl FnMut(&mut Frame<'_>)) {
        let (sum, division) = (self.offload.checksum, self.offload.division);
        let Some(segments) =
            sum.zip(division).and_then(|(sum, division)| Segments::new(self.bytes, sum, division))
        else {
            return visit(self);
        };
        for number in 0..segments.count() {
            let len = segments.write(number, self.spare);
            let offload = Offload { checksum: sum, division: None };
            visit(&mut Frame { bytes: &mut self.spare[..len], offload, spare: &mut [] });
        }
    }

    /// Completes the checksum, if it is left undone.
    pub fn complete_checksum(&mut self) {
        if let Some(Partial { start, offset }) = self.offload.checksum.take() {
            let part = &mut self.bytes[start.into()..];
            let sum = checksum(sum(part));
            part[offset.into()..][..2].copy_from_slice(&sum);
        }
    }
}

/// What a frame is for a receiver to which nothing is left: itself, or its segments, with their checksums.
#[derive(Debug)]
pub struct Completed<'a> {
    bytes: &'a [u8],
    checksum: Option<Partial>,
    segments: Option<Segments<'a>>,
}

impl Completed<'_> {
    /// How many frames there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.segments.map_or(1, |segments| segments.count())
    }

    /// Bytes of the longest.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.segments.map_or(self.bytes.len(), |segments| segments.longest())
    }

    /// Writes frame `number` to `out`, which has room for it; how many bytes that are. Each byte of data is
    /// read once: what is copied is summed up on the way.
    #[must_use]
    pub fn write(&self, number: usize, out: &mut [u8]) -> usize {
        if let Some(segments) = &self.segments {
            return segments.write_completed(number, out);
        }
        let out = &mut out[..self.bytes.len()];
        match self.checksum {
            None => out.copy_from_slice(self.bytes),
            Some(Partial { start, offset }) => {
                let (head, part) = self.bytes.split_at(start.into());
                let (out_head, out_part) = out.split_at_mut(start.into());
                out_head.copy_from_slice(head);
                let sum = copy_and_sum(part, out_part);
                out_part[offset.into()..][..2].copy_from_slice(&checksum(sum));
            }
        }
        self.bytes.len()
    }
}

/// Bytes of a checksum with this sum.
#[must_use]
pub const fn checksum(sum: u64) -> [u8; 2] {
    match !folded(sum) {
        // None says that there is no checksum; the two are the same number.
        0 => [0xff; 2],
        sum => sum.to_be_bytes(),
    }
}

/// The sum of the 16-bit words in `bytes`; an odd one is followed by zero.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut total = words.iter().fold(0, |total, word| added(total, *word));
    total = added(total, last(rest));
    digits(total)
}

/// Copies `from` to `to`, which is as long; what [`sum`] says of it.
#[must_use]
pub fn copy_and_sum(from: &[u8], to: &mut [u8]) -> u64 {
    let (words, rest) = from.as_chunks::<8>();
    let (to_words, to_rest) = to.as_chunks_mut::<8>();
    let mut total = 0;
    for (word, to) in words.iter().zip(to_words) {
        *to = *word;
        total = added(total, *word);
    }
    to_rest.copy_from_slice(rest);
    digits(added(total, last(rest)))
}

/// `total` and four words, in ones' complement of 64 bits. In which order a word's bytes are does not matter
/// until the end (RFC 1071, 2).
const fn added(total: u64, words: [u8; 8]) -> u64 {
    let (sum, carry) = total.overflowing_add(u64::from_le_bytes(words));
    sum + carry as u64
}

/// Fewer than 8 bytes, followed by zeros.
fn last(rest: &[u8]) -> [u8; 8] {
    let mut word = [0; 8];
    word[..rest.len()].copy_from_slice(rest);
    word
}

/// A sum of words whose bytes were taken the other way round.
const fn digits(total: u64) -> u64 {
    folded((total >> 32) + (total & u32::MAX as u64)).swap_bytes() as u64
}

/// A sum in ones' complement of 16 bits.
#[must_use]
pub const fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    /// The checksum as RFC 1071 tells it, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u16;
        for pair in bytes.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            let (more, carry) = sum.overflowing_add(word);
            sum = more + u16::from(carry);
        }
        sum
    }

    fn partial(start: u16, offset: u16) -> Offload {
        Offload { checksum: Some(Partial { start, offset }), division: None }
    }

    #[test]
    fn a_known_packet() {
        // RFC 1071, 3: the sum of these is 0xddf2.
        assert_eq!(folded(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
        // UDP from 10.0.0.1:1 to 10.0.0.2:2, "hi": the pseudo-header's sum is in the field.
        let pseudo = 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + 17 + 10;
        let mut bytes = vec![0; 34];
        bytes.extend([0, 1, 0, 2, 0, 10]);
        bytes.extend(u16::to_be_bytes(pseudo));
        bytes.extend(b"hi");
        let mut frame = Frame::new(&mut bytes, partial(34, 6), &mut []).unwrap();
        frame.complete_checksum();
        assert_eq!(frame.offload, Offload::default());
        let expected = !(pseudo + 1 + 2 + 10 + u16::from_be_bytes(*b"hi"));
        assert_eq!(bytes[40..42], expected.to_be_bytes());
    }

    #[test]
    fn what_does_not_fit_is_no_frame() {
        let fits = |len, offload| Frame::new(&mut vec![0; len], offload, &mut []).is_some();
        assert!(fits(14, Offload::default()) && !fits(13, Offload::default()));
        assert!(fits(LONGEST, Offload::default()) && !fits(LONGEST + 1, Offload::default()));
        assert!(fits(60, partial(14, 44)) && !fits(60, partial(14, 45)));
        assert!(!fits(60, partial(13, 0)) && !fits(60, partial(u16::MAX, u16::MAX)));
    }

    proptest! {
        /// The sum is RFC 1071's, of any number of bytes, and the copy is whole.
        #[test]
        fn sums_are_those_of_words(bytes in prop::collection::vec(any::<u8>(), 0..100), ones in any::<bool>()) {
            let bytes = if ones { vec![0xff; bytes.len()] } else { bytes };
            let mut copy = vec![0; bytes.len()];
            prop_assert_eq!(folded(sum(&bytes)), plain(&bytes));
            prop_assert_eq!(copy_and_sum(&bytes, &mut copy), sum(&bytes));
            prop_assert_eq!(copy, bytes);
        }

        /// With the pseudo-header, what was completed sums up to all ones.
        #[test]
        fn completed_checksums_are_right(
            bytes in prop::collection::vec(any::<u8>(), 60..200),
            start in 14..50u16,
            offset in (0..5u16).prop_map(|word| 2 * word),
        ) {
            let mut bytes = bytes;
            let place = usize::from(start + offset);
            let pseudo = u16::from_be_bytes([bytes[place], bytes[place + 1]]);
            let before: Vec<_> = bytes.clone();
            let mut frame = Frame::new(&mut bytes, partial(start, offset), &mut []).unwrap();
            let mut out = vec![0; frame.bytes.len() + 1];
            prop_assert_eq!(frame.completed().write(0, &mut out), out.len() - 1);
            frame.complete_checksum();
            prop_assert_eq!(&out[..out.len() - 1], &*frame.bytes, "both ways are the same");
            let all = [&pseudo.to_be_bytes(), &bytes[start.into()..]].concat();
            prop_assert_eq!(plain(&all), 0xffff);
            bytes[place..place + 2].copy_from_slice(&before[place..place + 2]);
            prop_assert_eq!(bytes, before, "nothing else changed");
        }
    }
}
