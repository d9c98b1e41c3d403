//! Reads the command line: which checks, how often, from which seed.
//! May: nothing. Input: the command line, trusted.

/// What a run is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// Checks to make: groups and `group.check` names. `None` for all.
    only: Option<&'a str>,
    /// Checks not to make.
    skip: Option<&'a str>,
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
    pub const DEFAULT: Self = Self {
        only: None,
        skip: None,
        list: false,
        flips: 10_000,
        fuzz: 100_000,
        seed: 1,
        withdraw: None,
    };

    /// Reads words; a word it does not know, or a value that is no number, is returned.
    ///
    /// # Errors
    /// The first wrong word.
    pub fn parse(line: &'a str) -> Result<Self, &'a str> {
        let mut options = Self::DEFAULT;
        for word in line.split_ascii_whitespace() {
            options.take(word).ok_or(word)?;
        }
        Ok(options)
    }

    fn take(&mut self, word: &'a str) -> Option<()> {
        match word.split_once('=') {
            None if word == "list" => self.list = true,
            Some(("only", names)) => self.only = Some(names),
            Some(("skip", names)) => self.skip = Some(names),
            Some(("flips", number)) => self.flips = number.parse().ok()?,
            Some(("fuzz", number)) => self.fuzz = number.parse().ok()?,
            Some(("seed", number)) => self.seed = number.parse().ok()?,
            Some(("withdraw", number)) => self.withdraw = Some(number.parse().ok()?),
            _ => return None,
        }
        Some(())
    }

    /// Whether the check `group.name` is to be made.
    #[must_use]
    pub fn chosen(&self, group: &str, name: &str) -> bool {
        let named = |list: &str| {
            list.split(',').any(|wanted| match wanted.split_once('.') {
                Some((wanted, start)) => wanted == group && name.starts_with(start),
                None => wanted == group,
            })
        };
        self.only.is_none_or(named) && !self.skip.is_some_and(named)
    }

    /// Whether some check was named that `exists` does not know: a typing error must not pass.
    pub fn unknown(&self, exists: impl Fn(&Self) -> bool) -> Option<&'a str> {
        let lists = [self.only, self.skip].into_iter().flatten();
        lists
            .flat_map(|list| list.split(','))
            .find(|name| !exists(&Self { only: Some(name), skip: None, ..*self }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_single_checks_are_chosen() {
        let options = Options::parse("only=map,run.kick skip=map.huge flips=7").unwrap();
        assert_eq!(options.flips, 7);
        assert!(options.chosen("map", "batches") && options.chosen("run", "kick_before"));
        assert!(!options.chosen("map", "huge") && !options.chosen("run", "deadline"));
        assert!(!options.chosen("maps", "batches"));
        assert!(Options::DEFAULT.chosen("any", "thing"));
    }

    #[test]
    fn wrong_words_are_named() {
        assert_eq!(Options::parse("flips=many"), Err("flips=many"));
        assert_eq!(Options::parse("only=map flop"), Err("flop"));
        assert_eq!(Options::parse("").unwrap(), Options::DEFAULT);
    }

    #[test]
    fn names_of_nothing_are_found() {
        let options = Options::parse("only=map,mop").unwrap();
        assert_eq!(options.unknown(|one| one.chosen("map", "a")), Some("mop"));
        assert_eq!(Options::DEFAULT.unknown(|_| false), None);
    }
}
