//! Keeps the latest output of a guest that nobody looks at.
//! May: alloc (boot only). Context: irq-off. Input: guest-controlled bytes.

use alloc::collections::VecDeque;

/// Bytes kept.
pub const CAPACITY: usize = 16 << 10;
/// Room made at once when it is full, so that looking for a line's end costs little for each byte.
const AT_ONCE: usize = CAPACITY / 16;

/// A bounded queue of output; what does not fit pushes out the oldest, by whole lines where there
/// are any.
#[derive(Debug)]
pub struct Backlog {
    kept: VecDeque<u8>,
    lost: u64,
}

impl Backlog {
    /// An empty one; all memory it will ever use is taken here.
    #[must_use]
    pub fn new() -> Self {
        Self { kept: VecDeque::with_capacity(CAPACITY), lost: 0 }
    }

    /// Bytes that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.kept.len()
    }

    /// Keeps `bytes`.
    pub fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(AT_ONCE) {
            if self.kept.len() + piece.len() > CAPACITY {
                self.drop_oldest();
            }
            self.kept.extend(piece);
        }
    }

    /// Drops [`AT_ONCE`] bytes and what is left of the line that they end in.
    fn drop_oldest(&mut self) {
        let rest_of_line = self.kept.range(AT_ONCE - 1..).position(|&byte| byte == b'\n');
        let count = AT_ONCE + rest_of_line.unwrap_or(0);
        self.kept.drain(..count);
        self.lost += count as u64;
    }

    /// Bytes that were dropped since it was shown last.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Hands everything to `show`, in order, and is empty then.
    pub fn show(&mut self, mut show: impl FnMut(&[u8])) {
        let (first, second) = self.kept.as_slices();
        for part in [first, second] {
            if !part.is_empty() {
                show(part);
            }
        }
        self.kept.clear();
        self.lost = 0;
    }
}

impl Default for Backlog {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{format, string::String, vec::Vec};

    fn shown(backlog: &mut Backlog) -> Vec<u8> {
        let mut all = Vec::new();
        backlog.show(|part| all.extend_from_slice(part));
        all
    }

    #[test]
    fn what_fits_is_shown_once() {
        let mut backlog = Backlog::new();
        backlog.push(b"one\n");
        backlog.push(b"two");
        assert_eq!((backlog.waiting(), backlog.lost()), (7, 0));
        assert_eq!(shown(&mut backlog), b"one\ntwo");
        assert_eq!(shown(&mut backlog), b"");
    }

    #[test]
    fn the_oldest_lines_go_first() {
        let mut backlog = Backlog::new();
        let line = |n: u32| format!("line {n:>10}\r\n");
        let all: String = (0..2000).map(line).collect();
        backlog.push(all.as_bytes());
        let lost = backlog.lost() as usize;
        let text = shown(&mut backlog);
        assert_eq!(text, &all.as_bytes()[lost..]);
        assert!(text.starts_with(b"line "), "cut within a line");
        assert!(text.len() > CAPACITY - 2 * AT_ONCE, "more was dropped than need be");
        assert_eq!(backlog.lost(), 0, "it was told");
    }

    proptest! {
        /// Whatever is written, the tail is kept, within bounds, and nothing goes uncounted.
        #[test]
        fn the_tail_is_kept(writes in prop::collection::vec(
            (prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'x')], 0..50), 1..200usize),
            0..20,
        )) {
            let (mut backlog, mut all) = (Backlog::new(), Vec::new());
            let taken = backlog.kept.capacity();
            for (unit, times) in writes {
                let write = unit.repeat(times);
                backlog.push(&write);
                all.extend(write);
                prop_assert!(backlog.waiting() <= CAPACITY);
            }
            prop_assert_eq!(backlog.kept.capacity(), taken);
            let lost = backlog.lost() as usize;
            prop_assert_eq!(&shown(&mut backlog)[..], &all[lost..]);
            let whole = lost == 0 || all[lost - 1] == b'\n' || !all[lost..][..CAPACITY - 2 * AT_ONCE].contains(&b'\n');
            prop_assert!(whole, "cut within a line although another started");
        }
    }
}
