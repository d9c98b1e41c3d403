//! Gathers a guest's output into lines that carry its name.
//! May: alloc (boot only). Context: irq-off. Input: guest-controlled bytes.
//!
//! Lines of several guests stand below each other on one screen, so a guest must not be able to
//! move the cursor: control characters are shown, not passed on.

use alloc::vec::Vec;

/// Bytes of a line, beside the name; a longer one is cut into several.
pub const LONGEST: usize = 4096;
/// The most bytes that one byte of output becomes.
const WIDEST: usize = 2;

/// The line being written.
#[derive(Debug)]
pub struct Lines {
    /// The name, then what there is of the line.
    line: Vec<u8>,
    /// Where the line starts.
    start: usize,
    /// A carriage return came last: part of the line's end, perhaps.
    returned: bool,
}

impl Lines {
    /// Lines after `name`; all memory it will ever use is taken here.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let start = name.len() + 2;
        let mut line = Vec::with_capacity(start + LONGEST + WIDEST + 2);
        line.extend_from_slice(name.as_bytes());
        line.extend_from_slice(b"| ");
        Self { line, start, returned: false }
    }

    /// Adds output; each line that it completes goes to `show`, in one piece.
    pub fn push(&mut self, bytes: &[u8], mut show: impl FnMut(&[u8])) {
        for &byte in bytes {
            match byte {
                b'\n' => self.end(&mut show),
                // At the start of a line it moves nothing.
                b'\r' => self.returned = self.line.len() > self.start,
                _ => {
                    if self.returned {
                        self.returned = false;
                        self.add(b'\r', &mut show);
                    }
                    self.add(byte, &mut show);
                }
            }
        }
    }

    /// Shows what there is of a line that nobody will complete.
    pub fn flush(&mut self, mut show: impl FnMut(&[u8])) {
        if self.line.len() > self.start {
            self.end(&mut show);
        }
    }

    fn end(&mut self, show: &mut impl FnMut(&[u8])) {
        self.line.extend_from_slice(b"\r\n");
        show(&self.line);
        self.line.truncate(self.start);
        self.returned = false;
    }

    fn add(&mut self, byte: u8, show: &mut impl FnMut(&[u8])) {
        if self.line.len() - self.start >= LONGEST {
            self.end(show);
        }
        match byte {
            b'\t' | b' '..=b'~' | 0x80.. => {
                // U+0080 to U+009F, in UTF-8: control characters as well.
                if matches!(byte, 0x80..=0x9f) && self.line.last() == Some(&0xc2) {
                    self.line.pop();
                    self.line.push(b'?');
                } else {
                    self.line.push(byte);
                }
            }
            _ => self.line.extend_from_slice(&[b'^', byte ^ 0x40]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn lines(writes: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut lines, mut shown) = (Lines::new("g"), vec![]);
        for bytes in writes {
            lines.push(bytes, |line| shown.push(line.to_vec()));
        }
        lines.flush(|line| shown.push(line.to_vec()));
        shown
    }

    #[test]
    fn a_line_is_shown_when_it_is_whole() {
        let mut lines = Lines::new("web");
        let mut shown = vec![];
        lines.push(b"he", |line| shown.push(line.to_vec()));
        assert!(shown.is_empty());
        lines.push(b"llo\r\nyou", |line| shown.push(line.to_vec()));
        assert_eq!(shown, [b"web| hello\r\n"]);
        lines.flush(|line| shown.push(line.to_vec()));
        lines.flush(|line| shown.push(line.to_vec()));
        assert_eq!(shown[1..], [b"web| you\r\n"], "once");
    }

    #[test]
    fn ends_of_lines_are_all_alike() {
        assert_eq!(
            lines(&[b"a\nb\r\nc\r", b"\r\n\n"]).concat(),
            b"g| a\r\ng| b\r\ng| c\r\ng| \r\n"
        );
        assert_eq!(lines(&[b"1%\r\r2%^M\n\r", b"\r"]).concat(), b"g| 1%^M2%^M\r\n");
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(lines(&[b"\rx\n\r\ry\n"]).concat(), b"g| x\r\ng| y\r\n");
        let shown = lines(&[b"\x1b[2J\tx\x7f\rg| y\xc2\x9b1A \xc3\xa9"]).concat();
        assert_eq!(shown, b"g| ^[[2J\tx^?^Mg| y?1A \xc3\xa9\r\n");
    }

    #[test]
    fn long_lines_are_cut() {
        let shown = lines(&[&[b'x'; LONGEST + 1], b"\n"]);
        assert_eq!(shown[0].len(), 3 + LONGEST + 2);
        assert_eq!(shown[1], b"g| x\r\n");
        assert_eq!(lines(&[&[b'x'; LONGEST], b"\n"]).len(), 1, "it just fits");
    }

    proptest! {
        #[test]
        fn every_line_stands_for_itself(
            writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..8)
        ) {
            let (mut lines, mut shown) = (Lines::new("g"), vec![]);
            let taken = lines.line.capacity();
            for bytes in &writes {
                lines.push(bytes, |line| shown.push(line.to_vec()));
            }
            prop_assert_eq!(lines.line.capacity(), taken);
            for line in shown {
                let text = line.strip_prefix(b"g| ").unwrap().strip_suffix(b"\r\n").unwrap();
                prop_assert!(text.len() <= LONGEST + WIDEST);
                prop_assert!(!text.iter().any(|&byte| byte < 0x20 && byte != b'\t' || byte == 0x7f));
            }
        }
    }
}
