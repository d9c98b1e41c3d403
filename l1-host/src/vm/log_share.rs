//! How much a guest may add to L1's log, which others read, and which lies on somebody's disk.
//! May: nothing. Context: any.

use crate::rate::Bucket;

/// Bytes that a guest may have written in a second, for ever. At once it may be as many as the bucket holds.
const RATE: u64 = 4 << 10;
/// What a line costs beside its text: so much stands before it.
const LINE: usize = 32;

/// A guest's share of the log.
#[derive(Debug)]
pub struct LogShare {
    bucket: Bucket,
    /// Lines since the last one that was written.
    dropped: u64,
}

impl LogShare {
    /// A share of which nothing is used, at `now` on a clock of `hz` ticks in a second.
    #[must_use]
    pub fn new(hz: u64, now: u64) -> Self {
        Self { bucket: Bucket::new(RATE, hz, now), dropped: 0 }
    }

    /// Whether a line of `bytes` is to be written at `now`: then, how many before it were not.
    #[must_use]
    pub fn take(&mut self, bytes: usize, now: u64) -> Option<u64> {
        if self.bucket.take(bytes + LINE, now) {
            Some(core::mem::take(&mut self.dropped))
        } else {
            self.dropped += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 1_000_000;

    #[test]
    fn a_flood_is_cut_off_and_told_of() {
        let mut share = LogShare::new(HZ, 0);
        let written = (0..1000).filter(|_| share.take(1024, 0).is_some()).count();
        assert!((60..200).contains(&written), "{written}");
        let dropped = 1000 - written as u64;
        assert_eq!(share.take(1024, HZ), Some(dropped), "a second later there is room");
        assert_eq!(share.take(1024, HZ), Some(0), "that was told");
    }

    #[test]
    fn empty_lines_are_lines() {
        let mut share = LogShare::new(HZ, 0);
        assert!((0..100_000).any(|_| share.take(0, 0).is_none()));
    }
}
