//! Says what a check found and prints it in the Test Anything Protocol.

use suite::{
    native::uart::Uart,
    println,
    tally::{Found, Tally},
};

/// What a check found: nothing wrong, or what.
pub type Verdict = Result<(), Wrong>;

/// Why a check did not pass.
#[derive(Debug)]
pub struct Wrong {
    reason: Reason,
    /// Which of the cases of a check it was.
    case: &'static str,
}

#[derive(Debug)]
enum Reason {
    Differs { what: &'static str, found: u64, expected: u64 },
    Skipped(&'static str),
}

impl Wrong {
    /// Two values that should be equal are not.
    pub const fn differs(what: &'static str, found: u64, expected: u64) -> Self {
        Self { reason: Reason::Differs { what, found, expected }, case: "" }
    }

    /// This machine lacks what a check needs.
    pub const fn skipped(why: &'static str) -> Self {
        Self { reason: Reason::Skipped(why), case: "" }
    }
}

/// Compares two values.
pub fn equal(what: &'static str, found: u64, expected: u64) -> Verdict {
    if found == expected { Ok(()) } else { Err(Wrong::differs(what, found, expected)) }
}

/// States a truth.
pub fn holds(what: &'static str, truth: bool) -> Verdict {
    equal(what, truth.into(), 1)
}

/// States that `value` is at least `least` and at most `most`.
pub fn within(what: &'static str, value: u64, least: u64, most: u64) -> Verdict {
    if value < least {
        Err(Wrong::differs(what, value, least))
    } else if value > most {
        Err(Wrong::differs(what, value, most))
    } else {
        Ok(())
    }
}

/// Ends a check that this machine cannot do.
pub fn skip(why: &'static str) -> Verdict {
    Err(Wrong::skipped(why))
}

/// Says which case of a check a verdict is about.
pub trait Case {
    /// Adds `name`, unless a case inside it was named already.
    fn case(self, name: &'static str) -> Self;
}

impl<T> Case for Result<T, Wrong> {
    fn case(self, name: &'static str) -> Self {
        self.map_err(
            |wrong| if wrong.case.is_empty() { Wrong { case: name, ..wrong } } else { wrong },
        )
    }
}

/// Prints the line of check `group.name` of `rules`, and counts it.
pub fn report(tally: &mut Tally, rules: &'static str, group: &str, name: &str, verdict: &Verdict) {
    let found = match verdict {
        Ok(()) => Found::Fine,
        Err(Wrong { reason: Reason::Skipped(why), .. }) => Found::Skipped(why),
        Err(Wrong { reason: Reason::Differs { .. }, .. }) => Found::Wrong,
    };
    let _ = tally.line(&mut Uart, rules, group, name, found);
    if let Err(Wrong { reason: Reason::Differs { what, found, expected }, case }) = verdict {
        println!("#   {what}: found {found:#x}, expected {expected:#x}");
        if !case.is_empty() {
            println!("#   case: {case}");
        }
    }
}
