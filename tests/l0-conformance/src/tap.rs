//! Prints what checks found in the Test Anything Protocol.
//! May: nothing. Context: any.

use crate::{println, runtime::console::Uart};
use suite::tally::{Found, Tally};
pub use suite::verdict::{Case, Verdict, Wrong};

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
            (Err(wrong), Some(_)) => println!("#   {}", wrong.why()),
        }
    }

    /// What the first case that failed gave.
    pub fn verdict(self) -> Verdict {
        self.first.map_or(Ok(()), Err)
    }
}

/// Prints the line of the check `group.name` of `rules`, and counts it.
pub fn report(tally: &mut Tally, rules: &'static str, group: &str, name: &str, verdict: &Verdict) {
    let found = verdict.as_ref().map_or_else(Wrong::found, |()| Found::Fine);
    let _ = tally.line(&mut Uart, rules, group, name, found);
    if let (Found::Wrong, Err(wrong)) = (found, verdict) {
        println!("{wrong}");
    }
}
