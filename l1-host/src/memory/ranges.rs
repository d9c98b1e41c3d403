//! Keeps a set of free physical ranges and hands out contiguous pieces.
//! May: nothing. Context: boot, run-loop. Input: trusted.
//!
//! L1 takes few and large pieces (a guest's memory, a table pool), so a short sorted list does.

use arrayvec::ArrayVec;
use core::ops::Range;

/// Ranges that can be told apart at most; memory maps have a few dozen entries.
const MOST: usize = 128;

/// Free ranges, sorted, disjoint, not touching.
#[derive(Clone, Debug, Default)]
pub struct Ranges(ArrayVec<Range<u64>, MOST>);

impl Ranges {
    /// No range.
    #[must_use]
    pub const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// Adds `range`. What overlaps is merged. If the list is full the range is lost.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut merged = range;
        self.0.retain(|other| {
            let touches = other.start <= merged.end && merged.start <= other.end;
            if touches {
                merged = merged.start.min(other.start)..merged.end.max(other.end);
            }
            !touches
        });
        let at = self.0.iter().position(|other| other.start > merged.start);
        let _ = self.0.try_insert(at.unwrap_or(self.0.len()), merged);
    }

    /// Adds the whole pages in `range`.
    pub fn add_whole_pages(&mut self, range: Range<u64>) {
        self.add(range.start.next_multiple_of(4096)..range.end & !0xfff);
    }

    /// Removes whatever of `range` is there.
    pub fn remove(&mut self, range: Range<u64>) {
        let mut after = Self::new();
        for other in &self.0 {
            after.add(other.start..other.end.min(range.start));
            after.add(other.start.max(range.end)..other.end);
        }
        *self = after;
    }

    /// Takes `len` bytes aligned to `align` (a power of two), from the highest range they fit.
    pub fn take(&mut self, len: u64, align: u64) -> Option<u64> {
        let start = self.0.iter().rev().find_map(|range| {
            let start = range.end.checked_sub(len)? & !(align - 1);
            (start >= range.start).then_some(start)
        })?;
        self.remove(start..start + len);
        Some(start)
    }

    /// Takes the largest piece, cut to whole multiples of `align` and to `most` bytes at most.
    pub fn take_largest(&mut self, most: u64, align: u64) -> Option<Range<u64>> {
        let aligned = |range: &Range<u64>| {
            let (start, end) = (range.start.next_multiple_of(align), range.end & !(align - 1));
            start..end.max(start)
        };
        let best = self.0.iter().map(aligned).max_by_key(|range| range.end - range.start)?;
        let len = (best.end - best.start).min(most) & !(align - 1);
        if len == 0 {
            return None;
        }
        let piece = best.end - len..best.end;
        self.remove(piece.clone());
        Some(piece)
    }

    /// Bytes in all ranges.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(u64, u64)]) -> Ranges {
        let mut all = Ranges::new();
        for &(start, end) in ranges {
            all.add(start..end);
        }
        all
    }

    #[test]
    fn neighbours_and_overlaps_merge() {
        let all = of(&[(0x1000, 0x2000), (0x5000, 0x6000), (0x2000, 0x3000), (0x5800, 0x7000)]);
        assert!(all.iter().eq(&[0x1000..0x3000, 0x5000..0x7000]));
    }

    #[test]
    fn whole_pages_only() {
        let mut all = Ranges::new();
        all.add_whole_pages(0x1001..0x4fff);
        all.add_whole_pages(0x5001..0x5fff);
        let mut ranges = all.iter();
        assert_eq!((ranges.next(), ranges.next()), (Some(&(0x2000..0x4000)), None));
    }

    #[test]
    fn removing_splits() {
        let mut all = of(&[(0, 0x10_000)]);
        all.remove(0x4000..0x5000);
        assert!(all.iter().eq(&[0..0x4000, 0x5000..0x10_000]));
        all.remove(0x3000..0x6000);
        assert_eq!(all.total(), 0x3000 + 0xa000);
    }

    #[test]
    fn pieces_are_aligned_and_from_the_top() {
        let mut all = of(&[(0x1000, 0x41_0000)]);
        assert_eq!(all.take(0x20_0000, 0x20_0000), Some(0x20_0000));
        assert_eq!(all.take(0x1000, 0x1000), Some(0x40_f000));
        assert_eq!(all.take(0x20_0000, 0x20_0000), None, "no aligned piece is left");
    }

    #[test]
    fn the_largest_piece_is_cut_to_size() {
        let mut all = of(&[(0x1000, 0x5000), (0x10_0000, 0x100_0000)]);
        assert_eq!(all.take_largest(u64::MAX, 0x20_0000), Some(0x20_0000..0x100_0000));
        assert_eq!(all.take_largest(u64::MAX, 0x20_0000), None);
    }
}
