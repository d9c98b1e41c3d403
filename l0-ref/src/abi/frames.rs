//! Counts how often each frame of L1 is mapped into its L2 VMs, and which are private.
//! May: nothing. Input: frames that were checked to be L1's.

use std::ops::Range;

const PRIVATE: u32 = 1 << 31;

/// A word for each frame, by its page in L1's memory file.
#[derive(Clone, Debug)]
pub struct Frames(Vec<u32>);

impl Frames {
    /// No mapping of any of so many frames.
    #[must_use]
    pub fn new(frames: u64) -> Self {
        // Zeroed memory costs nothing until it is used.
        Self(vec![0; frames as usize])
    }

    /// One more mapping of each.
    pub fn add(&mut self, frames: Range<u64>) {
        self.words(frames).iter_mut().for_each(|word| *word += 1);
    }

    /// One mapping less; a private frame is shared again.
    pub fn remove(&mut self, frames: Range<u64>) {
        self.words(frames).iter_mut().for_each(|word| *word = (*word & !PRIVATE) - 1);
    }

    /// Sets the owner of frames that are mapped once.
    pub fn set_private(&mut self, frames: Range<u64>, owner: Owner) {
        for word in self.words(frames) {
            match owner {
                Owner::L2 => *word |= PRIVATE,
                Owner::All => *word &= !PRIVATE,
            }
        }
    }

    /// The first frame that is private.
    #[must_use]
    pub fn first_private(&self, frames: Range<u64>) -> Option<u64> {
        self.find(frames, |word| word & PRIVATE != 0)
    }

    /// The first frame that has more than one mapping.
    #[must_use]
    pub fn first_busy(&self, frames: Range<u64>) -> Option<u64> {
        self.find(frames, |word| word & !PRIVATE > 1)
    }

    /// Whether a frame is private.
    #[must_use]
    pub fn is_private(&self, frame: u64) -> bool {
        self.0[frame as usize] & PRIVATE != 0
    }

    fn find(&self, frames: Range<u64>, test: impl Fn(u32) -> bool) -> Option<u64> {
        let words = &self.0[frames.start as usize..frames.end as usize];
        words.iter().position(|word| test(*word)).map(|at| frames.start + at as u64)
    }

    fn words(&mut self, frames: Range<u64>) -> &mut [u32] {
        &mut self.0[frames.start as usize..frames.end as usize]
    }
}

/// Who may use a mapped frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// L2 alone.
    L2,
    /// L2 and L1.
    All,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_mapping_ends_privacy() {
        let mut frames = Frames::new(4);
        frames.add(0..3);
        frames.add(2..3);
        assert_eq!(frames.first_busy(0..4), Some(2));
        frames.set_private(1..2, Owner::L2);
        assert_eq!((frames.first_private(0..4), frames.is_private(1)), (Some(1), true));
        frames.remove(0..3);
        assert_eq!((frames.first_private(0..4), frames.first_busy(0..4)), (None, None));
    }
}
