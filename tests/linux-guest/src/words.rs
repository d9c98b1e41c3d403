//! Reads a program's own words from a command line.
//! Input: trusted, checked all the same.

use std::{fmt::Display, str::FromStr};

/// The `prefix.key=value` words of one program, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words(Vec<(String, String)>);

impl Words {
    /// Picks the words that start with `prefix` and a dot. A word without `=` has the value `1`.
    /// Words of others (the kernel's) are passed over.
    #[must_use]
    pub fn parse(prefix: &str, line: &str) -> Self {
        let own = |word: &str| {
            let rest = word.strip_prefix(prefix)?.strip_prefix('.')?;
            let (key, value) = rest.split_once('=').unwrap_or((rest, "1"));
            Some((key.to_owned(), value.to_owned()))
        };
        Self(line.split_whitespace().filter_map(own).collect())
    }

    /// The value of `key`; the last one wins.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The comma-separated names given with `key`.
    #[must_use]
    pub fn list(&self, key: &str) -> Vec<&str> {
        let names = self.get(key).unwrap_or_default().split(',');
        names.filter(|name| !name.is_empty()).collect()
    }

    /// The number given with `key`, or `default`.
    ///
    /// # Errors
    /// A line that names the word, if the value is no such number.
    pub fn number<T: FromStr>(&self, key: &str, default: T) -> Result<T, String>
    where
        T::Err: Display,
    {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.parse().map_err(|error| format!("{key}={value}: {error}; give a number"))
    }

    /// Refuses keys other than `known`, so that a typing mistake does not go unseen.
    ///
    /// # Errors
    /// A line that names the first unknown key and all known ones.
    pub fn only_known(&self, known: &[&str]) -> Result<(), String> {
        match self.0.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, _)) => Err(format!("unknown word {key}; known are: {}", known.join(" "))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_words_are_picked_from_a_kernel_command_line() {
        let words = Words::parse("check", "console=hvc0 check.only=a,b check.oom checkers.n=3");
        assert_eq!(words.list("only"), ["a", "b"]);
        assert_eq!(words.get("oom"), Some("1"));
        assert_eq!(words.get("n"), None);
        assert!(words.list("skip").is_empty());
    }

    #[test]
    fn the_last_value_wins_and_numbers_are_checked() {
        let words = Words::parse("b", "b.n=1 b.n=2.5 b.m=x");
        assert_eq!(words.number("n", 1.0), Ok(2.5));
        assert_eq!(words.number("absent", 7), Ok(7));
        assert!(words.number("m", 1_u32).unwrap_err().starts_with("m=x:"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let words = Words::parse("b", "b.onyl=x");
        assert!(words.only_known(&["only", "skip"]).unwrap_err().contains("onyl"));
        assert_eq!(words.only_known(&["onyl"]), Ok(()));
    }
}
