//! Defines what a check is.

use anyhow::Result;
use linux_guest::init::{Role, say};
use std::{fmt::Display, time::Duration};

/// One thing to check.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Its name in words and reports.
    pub name: &'static str,
    /// What to do, in a process of its own.
    pub run: fn(&Context) -> Result<Verdict>,
}

/// How a check ended that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was as it should be.
    Pass,
    /// It could not be checked here, for this reason.
    Skip(String),
}

impl Verdict {
    /// Skips for a reason.
    pub fn skip(reason: impl Into<String>) -> Result<Self> {
        Ok(Self::Skip(reason.into()))
    }
}

/// What a check may know.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// How the program was started.
    pub role: Role,
    /// How often to do things.
    pub factor: Factor,
    /// How long one check may take.
    pub limit: Duration,
    /// Whether memory may be used up.
    pub out_of_memory: bool,
    /// Name of the check.
    pub name: &'static str,
}

impl Context {
    /// Prints something worth knowing that is no failure.
    pub fn note(&self, text: impl Display) {
        say(&format!("# {}: {text}", self.name));
    }
}

/// A factor for repetitions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor(f64);

impl Factor {
    /// Takes a factor between 0 (not included) and 1000.
    ///
    /// # Errors
    /// It is outside.
    pub fn new(value: f64) -> Result<Self, String> {
        if value > 0.0 && value <= 1000.0 {
            Ok(Self(value))
        } else {
            Err(format!("check.n={value} is not between 0 and 1000"))
        }
    }

    /// `count` times the factor, at least 2.
    pub fn of(self, count: u64) -> u64 {
        ((count as f64 * self.0) as u64).max(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_scale_and_have_limits() {
        assert_eq!(Factor::new(0.1).unwrap().of(1000), 100);
        assert_eq!(Factor::new(0.001).unwrap().of(100), 2);
        assert!(Factor::new(0.0).is_err());
        assert!(Factor::new(f64::NAN).is_err());
    }
}
