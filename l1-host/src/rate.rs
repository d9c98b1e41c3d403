//! Limits how many bytes pass in a time: a token bucket.
//! May: nothing. Context: any.

/// Bytes that may pass at once, at least: no frame is too long for its bucket.
const LEAST: u64 = 128 << 10;
/// What may pass at once: so many parts of what may pass in a second.
const PARTS: u64 = 10;

/// A bucket. What it holds may pass at once; it fills at its rate.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Bytes in a second.
    rate: u64,
    /// Ticks in a second.
    hz: u64,
    /// Byte-ticks: a byte is [`Self::hz`] of them.
    level: u128,
    /// When that was so.
    at: u64,
}

impl Bucket {
    /// A full bucket for `rate` bytes in a second, at `now` on a clock of `hz` ticks in a second.
    #[must_use]
    pub fn new(rate: u64, hz: u64, now: u64) -> Self {
        let mut bucket = Self { rate, hz, level: 0, at: now };
        bucket.level = bucket.most();
        bucket
    }

    fn most(&self) -> u128 {
        u128::from((self.rate / PARTS).max(LEAST)) * u128::from(self.hz)
    }

    /// True, and the bucket emptier, if `bytes` may pass at `now`.
    #[must_use]
    pub fn take(&mut self, bytes: usize, now: u64) -> bool {
        let ticks = now.saturating_sub(self.at);
        let level = self.level + u128::from(ticks) * u128::from(self.rate);
        self.level = level.min(self.most());
        self.at = self.at.max(now);
        let cost = bytes as u128 * u128::from(self.hz);
        let fits = cost <= self.level;
        if fits {
            self.level -= cost;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HZ: u64 = 1_000_000;

    #[test]
    fn what_is_in_it_passes_and_no_more() {
        let mut bucket = Bucket::new(2_000_000, HZ, 5);
        assert!(bucket.take(200_000, 5), "a tenth of a second's worth");
        assert!(!bucket.take(1, 5));
        assert!(!bucket.take(2001, 1005), "in a millisecond 2000 come");
        assert!(bucket.take(2000, 1005));
        assert!(!bucket.take(1, 1005));
        assert!(!bucket.take(1, 4), "the clock of another CPU may be behind");
        assert!(
            bucket.take(200_000, u64::MAX) && !bucket.take(1, u64::MAX),
            "it does not overflow"
        );
    }

    #[test]
    fn a_slow_one_takes_the_longest_frame() {
        assert!(Bucket::new(1, HZ, 0).take(crate::dev::switch::LONGEST, 0));
    }

    proptest! {
        /// In any time no more passes than the rate allows, and what was in it at first.
        #[test]
        fn the_rate_holds(
            rate in 1..1_000_000_000_000u64,
            takes in prop::collection::vec((1..70_000usize, 0..2_000_000u64), 1..100),
        ) {
            let mut bucket = Bucket::new(rate, HZ, 0);
            let (mut now, mut passed) = (0, 0u128);
            for (bytes, wait) in takes {
                now += wait;
                if bucket.take(bytes, now) {
                    passed += bytes as u128;
                }
                let allowed = u128::from(rate) * u128::from(now) / u128::from(HZ);
                prop_assert!(passed <= allowed + u128::from((rate / PARTS).max(LEAST)) + 1);
            }
        }
    }
}
