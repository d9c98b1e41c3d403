//! Says what a check found, in words, and where in the source it was seen.
//! May: nothing. Input: trusted.

use crate::tally::Found;
use arrayvec::ArrayString;
use core::{
    fmt::{self, Write},
    panic::Location,
};

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
    #[must_use]
    #[track_caller]
    pub fn new(why: fmt::Arguments<'_>) -> Self {
        Self { why: text(why), place: Some(Location::caller()) }
    }

    /// A check that cannot be made here.
    #[must_use]
    pub fn skip(why: fmt::Arguments<'_>) -> Self {
        Self { why: text(why), place: None }
    }

    /// Puts words before the message.
    #[must_use]
    pub fn within(self, case: fmt::Arguments<'_>) -> Self {
        Self { why: text(format_args!("{case}: {}", self.why)), ..self }
    }

    /// The message.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    /// What the line of a result says of it.
    #[must_use]
    pub fn found(&self) -> Found<'_> {
        if self.place.is_some() { Found::Wrong } else { Found::Skipped(&self.why) }
    }
}

/// The remarks under a failure: the message and its place.
impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#   {}", self.why)?;
        self.place.map_or(Ok(()), |at| write!(f, "\n#   at {}:{}", at.file(), at.line()))
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
    ($($part:tt)*) => { Err($crate::verdict::Wrong::new(::core::format_args!($($part)*))) };
}

/// Skips the check.
#[macro_export]
macro_rules! skip {
    ($($part:tt)*) => { Err($crate::verdict::Wrong::skip(::core::format_args!($($part)*))) };
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
                        "{}: found {found:x?}, expected {expected:x?}",
                        ::core::format_args!($($part)*)
                    );
                }
            }
        }
    };
}

/// Says which case of a check a verdict is about.
pub trait Case {
    /// Puts words before the message of a failure.
    #[must_use]
    fn case(self, case: fmt::Arguments<'_>) -> Self;
}

impl<T> Case for Verdict<T> {
    fn case(self, case: fmt::Arguments<'_>) -> Self {
        self.map_err(|wrong| wrong.within(case))
    }
}

#[cfg(test)]
#[expect(clippy::result_large_err, reason = "a failure is its words, without a heap")]
mod tests {
    use super::*;

    fn compare(found: u64) -> Verdict {
        same!(found, 16_u64, "the number");
        Ok(())
    }

    #[test]
    fn a_failure_names_values_and_place() {
        let wrong = compare(17).case(format_args!("first")).unwrap_err();
        assert_eq!(wrong.why(), "first: the number: found 11, expected 10");
        assert!(matches!(wrong.found(), Found::Wrong));
        assert!(wrong.to_string().contains("\n#   at "), "{wrong}");
        assert!(compare(16).is_ok());
    }

    #[test]
    fn a_skip_has_a_reason() {
        let verdict: Verdict = skip!("no {}", "device");
        assert!(matches!(verdict.unwrap_err().found(), Found::Skipped("no device")));
    }

    #[test]
    fn long_messages_are_cut() {
        assert_eq!(Wrong::new(format_args!("{:300}", 1)).why().len(), LENGTH);
    }
}
