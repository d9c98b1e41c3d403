//! Says what of L1's addresses is RAM, from the loader's map.
//! May: nothing. Input: the loader, trusted.

use arrayvec::ArrayVec;
use core::ops::Range;

/// Entries kept.
const MOST: usize = 32;

/// The map.
#[derive(Clone, Debug, Default)]
pub struct Usable {
    ranges: ArrayVec<Range<u64>, MOST>,
    others: ArrayVec<Range<u64>, MOST>,
}

impl Usable {
    /// Adds a range of RAM; more than this keeps are left out, which makes less RAM known.
    pub fn add(&mut self, range: Range<u64>) {
        if range.start < range.end {
            let _ = self.ranges.try_push(range);
        }
    }

    /// Adds a range of something else: tables of the firmware, devices, ROM.
    pub fn add_other(&mut self, range: Range<u64>) {
        let _ = self.others.try_push(range);
    }

    /// Whether the map says that `address` is RAM.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        self.ranges.iter().any(|range| range.contains(&address))
    }

    /// Whether the map says nothing about `address`.
    #[must_use]
    pub fn leaves_open(&self, address: u64) -> bool {
        !self.ranges.iter().chain(&self.others).any(|range| range.contains(&address))
    }

    /// The end of the last RAM, if nothing follows that may be RAM that the firmware keeps.
    #[must_use]
    pub fn sharp_end(&self) -> Option<u64> {
        Some(self.end()).filter(|end| self.leaves_open(*end))
    }

    /// The end of the last RAM.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ranges.iter().map(|range| range.end).max().unwrap_or(0)
    }

    /// The end of the last RAM below 4 GiB.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        let ends = self.ranges.iter().map(|range| range.end);
        ends.filter(|end| *end <= 1 << 32).max().unwrap_or(0)
    }

    /// The largest part of RAM at or above `from` and below 4 GiB, in whole pages.
    #[must_use]
    pub fn largest(&self, from: u64) -> Range<u64> {
        let parts = self.ranges.iter().map(|range| {
            let start = range.start.max(from).next_multiple_of(4096);
            start..range.end.min(1 << 32) & !0xfff
        });
        parts.max_by_key(|part| part.end.saturating_sub(part.start)).unwrap_or(0..0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_part_is_found() {
        let mut usable = Usable::default();
        usable.add(0..0x9_fc00);
        usable.add(0x10_0000..0x4000_0000);
        usable.add(1 << 32..1 << 33);
        usable.add(5..5);
        assert_eq!(usable.largest(0x20_0001), 0x20_1000..0x4000_0000);
        assert!(usable.contains(0x10_0000) && !usable.contains(0xa_0000));
        assert_eq!(usable.sharp_end(), Some(1 << 33));
        usable.add_other(1 << 33..3 << 32);
        assert_eq!(usable.sharp_end(), None);
        assert_eq!((usable.low_end(), usable.end()), (0x4000_0000, 1 << 33));
    }
}
