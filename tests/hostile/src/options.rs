//! Reads the command line: which attacks, how often, from which random start.
//! May: nothing. Input: the command line, trusted.

use suite::selection::Selection;

/// Attacks of a run, unless the command line says otherwise.
const COUNT: u64 = 1_000_000;

/// What a run is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// Which attacks to make.
    pub selection: Selection<'a>,
    /// How many, shared out among all that there are.
    pub count: u64,
    /// Where random numbers start.
    pub seed: u64,
    /// Break the ABI in this way, and end by it.
    pub die: Option<&'a str>,
    /// Seconds for which the guest does not yield.
    pub spin: u64,
    /// Attack nothing, and watch over itself for so many seconds or more.
    pub victim: Option<u64>,
    /// Print names and rules only.
    pub list: bool,
}

impl<'a> Options<'a> {
    /// Reads words. Those with a dot before an equals sign are the hypervisor's.
    ///
    /// # Errors
    /// The first word that it does not know.
    pub fn parse(line: &'a str) -> Result<Self, &'a str> {
        let mut options = Self {
            selection: Selection::default(),
            count: COUNT,
            seed: 1,
            die: None,
            spin: 0,
            victim: None,
            list: false,
        };
        for word in line.split_ascii_whitespace() {
            options.take(word).ok_or(word)?;
        }
        Ok(options)
    }

    fn take(&mut self, word: &'a str) -> Option<()> {
        match word.split_once('=') {
            Some((key, _)) if key.contains('.') => {}
            Some(("n", count)) => self.count = count.parse().ok().filter(|&count| count > 0)?,
            Some(("seed", seed)) => self.seed = seed.parse().ok()?,
            Some(("spin", seconds)) => self.spin = seconds.parse().ok()?,
            Some(("victim", seconds)) => self.victim = Some(seconds.parse().ok()?),
            Some(("die", case)) => self.die = Some(case),
            Some((key, names)) => return self.selection.take(key, names),
            None if word == "list" => self.list = true,
            None => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        let options = Options::parse("only=pvcs n=20 seed=7 roost.dirty-check=9 spin=2").unwrap();
        assert_eq!((options.count, options.seed, options.spin), (20, 7, 2));
        assert!(options.selection.chosen("pvcs", "fields") && !options.list);
        assert_eq!(Options::parse("die=x list").unwrap().die, Some("x"));
        assert_eq!(Options::parse("victim=9").unwrap().victim, Some(9));
        assert_eq!(Options::parse("").unwrap().count, COUNT);
    }

    #[test]
    fn wrong_words_are_named() {
        for word in ["n=many", "n=0", "onyl=msr", "seed=", "fast"] {
            assert_eq!(Options::parse(word), Err(word));
        }
    }
}
