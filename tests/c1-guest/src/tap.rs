//! Counts and prints results in TAP form.

use crate::println;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

static NUMBER: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// What a check found: nothing wrong, or what.
pub type Verdict = Result<(), Wrong>;

/// What was wrong, with the values that show it.
#[derive(Debug)]
pub struct Wrong {
    pub what: &'static str,
    pub found: u64,
    pub expected: u64,
}

/// Compares two values.
pub fn equal(what: &'static str, found: u64, expected: u64) -> Verdict {
    if found == expected { Ok(()) } else { Err(Wrong { what, found, expected }) }
}

/// States a truth.
pub fn holds(what: &'static str, truth: bool) -> Verdict {
    equal(what, truth.into(), 1)
}

pub fn report(name: &str, verdict: &Verdict) {
    let number = NUMBER.fetch_add(1, Relaxed) + 1;
    match verdict {
        Ok(()) => println!("ok {number} - {name}"),
        Err(wrong) => {
            FAILED.fetch_add(1, Relaxed);
            println!(
                "not ok {number} - {name}: {}: found {:#x}, expected {:#x}",
                wrong.what, wrong.found, wrong.expected
            );
        }
    }
}

/// Prints the plan; true if all was well and something was checked.
pub fn finish() -> bool {
    let number = NUMBER.load(Relaxed);
    println!("1..{number}");
    number > 0 && FAILED.load(Relaxed) == 0
}
