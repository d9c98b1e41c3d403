//! Says what a check found and prints it in the Test Anything Protocol.
//! May: nothing. Context: any.

use crate::println;
use arrayvec::ArrayString;
use core::{
    fmt::{self, Write},
    panic::Location,
};
use suite::tally::{Outcome, Tally};

/// Bytes of a message.
const LENGTH: usize = 200;

/// What a check found: nothing wrong, or what.
pub type Verdict<T = ()> = Result<T, Wrong>;

/// Why a check did not pass.
#[derive(Clone, Debug)]
pub struct Wrong {
    why: ArrayString<LENGTH>,
    /// Where in the source; `None` if the check was skipped.
    place: Option<&'static Location<'static>>,
}

/// A buffer that takes what fits.
struct Cut<'a>(&'a mut ArrayString<LENGTH>);

impl Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            if self.0.try_push(letter).is_err() {
                break;
            }
        }
        Ok(())
    }
}

impl Wrong {
    /// A failure.
    #[track_caller]
    pub fn new(why: fmt::Arguments<'_>) -> Self {
        Self { why: text(why), place: Some(Location::caller()) }
    }

    /// A check that cannot be made here.
    pub fn skip(why: fmt::Arguments<'_>) -> Self {
        Self { why: text(why), place: None }
    }

    /// Puts words before the message.
    #[must_use]
    pub fn within(self, case: fmt::Arguments<'_>) -> Self {
        Self { why: text(format_args!("{case}: {}", self.why)), ..self }
    }
}

fn text(words: fmt::Arguments<'_>) -> ArrayString<LENGTH> {
    let mut text = ArrayString::new();
    let _ = Cut(&mut text).write_fmt(words);
    text
}

/// Fails the check.
#[macro_export]
macro_rules! wrong {
    ($($part:tt)*) => { Err($crate::tap::Wrong::new(format_args!($($part)*))) };
}

/// Skips the check.
#[macro_export]
macro_rules! skip {
    ($($part:tt)*) => { Err($crate::tap::Wrong::skip(format_args!($($part)*))) };
}

/// Fails the check unless the condition holds.
#[macro_export]
macro_rules! holds {
    ($condition:expr, $($part:tt)*) => {
        if !$condition {
            return $crate::wrong!($($part)*);
        }
    };
}

/// Fails the check unless both values are equal.
#[macro_export]
macro_rules! same {
    ($found:expr, $expected:expr, $($part:tt)*) => {
        match (&$found, &$expected) {
            (found, expected) => {
                if found != expected {
                    return $crate::wrong!(
                        "{}: found {found:x?}, expected {expected:x?}", format_args!($($part)*)
                    );
                }
            }
        }
    };
}

/// Says which case of a check a verdict is about.
pub trait Case {
    /// Puts words before the message of a failure.
    fn case(self, case: fmt::Arguments<'_>) -> Self;
}

impl<T> Case for Verdict<T> {
    fn case(self, case: fmt::Arguments<'_>) -> Self {
        self.map_err(|wrong| wrong.within(case))
    }
}

/// Cases of which all are tried, whatever the others gave.
#[derive(Debug, Default)]
pub struct Cases {
    first: Option<Wrong>,
}

impl Cases {
    /// Adds what a case gave. All failures but the first are printed at once.
    pub fn add(&mut self, verdict: Verdict) {
        match (verdict, &self.first) {
            (Ok(()), _) => {}
            (Err(wrong), None) => self.first = Some(wrong),
            (Err(wrong), Some(_)) => println!("#   {}", wrong.why),
        }
    }

    /// What the first case that failed gave.
    pub fn verdict(self) -> Verdict {
        self.first.map_or(Ok(()), Err)
    }
}

/// Prints the line of the check `group.name` of `rules`, and counts it.
pub fn report(tally: &mut Tally, rules: &'static str, group: &str, name: &str, verdict: &Verdict) {
    let number = tally.all.sum() + 1;
    let outcome = match verdict {
        Ok(()) => {
            println!("ok {number} - {rules}: {group}.{name}");
            Outcome::Passed
        }
        Err(Wrong { why, place: None }) => {
            println!("ok {number} - {rules}: {group}.{name} # SKIP {why}");
            Outcome::Skipped
        }
        Err(Wrong { why, place: Some(place) }) => {
            println!("not ok {number} - {rules}: {group}.{name}");
            println!("#   {why}");
            println!("#   at {}:{}", place.file(), place.line());
            Outcome::Failed
        }
    };
    tally.add(rules, outcome);
}
