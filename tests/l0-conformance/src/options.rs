//! Reads the command line: which checks, how often, from which seed.
//! May: nothing. Input: the command line, trusted.

use suite::selection::Selection;

/// What a run is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// Which checks to make.
    pub selection: Selection<'a>,
    /// Print the names of the chosen checks and end.
    pub list: bool,
    /// Times a mapping changes under a running reader and writer.
    pub flips: u64,
    /// Random calls.
    pub fuzz: u64,
    /// What random numbers start from.
    pub seed: u64,
    /// Seconds after which L0 withdraws everything, if it will.
    pub withdraw: Option<u64>,
}

impl<'a> Options<'a> {
    /// Defaults: everything, 10,000 flips, 100,000 random calls.
    fn new() -> Self {
        Self {
            selection: Selection::default(),
            list: false,
            flips: 10_000,
            fuzz: 100_000,
            seed: 1,
            withdraw: None,
        }
    }

    /// Reads words; a word it does not know, or a value that is no number, is returned.
    ///
    /// # Errors
    /// The first wrong word.
    pub fn parse(line: &'a str) -> Result<Self, &'a str> {
        let mut options = Self::new();
        for word in line.split_ascii_whitespace() {
            options.take(word).ok_or(word)?;
        }
        Ok(options)
    }

    fn take(&mut self, word: &'a str) -> Option<()> {
        match word.split_once('=') {
            None if word == "list" => self.list = true,
            Some(("flips", number)) => self.flips = number.parse().ok()?,
            Some(("fuzz", number)) => self.fuzz = number.parse().ok()?,
            Some(("seed", number)) => self.seed = number.parse().ok()?,
            Some(("withdraw", number)) => self.withdraw = Some(number.parse().ok()?),
            Some((key, names)) => return self.selection.take(key, names),
            None => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        let options = Options::parse("only=map skip=map.huge flips=7").unwrap();
        assert_eq!(options.flips, 7);
        assert!(options.selection.chosen("map", "batches"));
        assert!(!options.selection.chosen("map", "huge"));
    }

    #[test]
    fn wrong_words_are_named() {
        assert_eq!(Options::parse("flips=many"), Err("flips=many"));
        assert_eq!(Options::parse("only=map flop"), Err("flop"));
        assert_eq!(Options::parse("").unwrap(), Options::new());
    }
}
