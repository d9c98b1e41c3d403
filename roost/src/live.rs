//! Shows counters while guests run.
//! Input: JSON written by L1.

use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
};

/// The most frequent reasons that are shown of each vCPU.
const REASONS: usize = 4;

/// What L1 says every so often.
#[derive(Clone, Debug, Deserialize)]
struct Sample {
    /// Milliseconds since L1's start.
    ms: u64,
    guests: Vec<Guest>,
}

#[derive(Clone, Debug, Deserialize)]
struct Guest {
    name: String,
    /// Exits by reason, of each vCPU, since its start.
    vcpus: Vec<BTreeMap<String, u64>>,
}

/// One vCPU between two looks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    name: String,
    vcpu: usize,
    /// Exits in a second.
    rate: u64,
    /// The most frequent reasons, and how often in a second.
    reasons: Vec<(String, u64)>,
}

/// Where it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A table in the top lines of a terminal, over and over.
    Screen,
    /// A line for each vCPU, one after the other.
    Lines,
}

/// What was seen last.
#[derive(Debug)]
pub struct Live {
    style: Style,
    before: Option<Sample>,
}

impl Live {
    /// Nothing seen yet.
    #[must_use]
    pub const fn new(style: Style) -> Self {
        Self { style, before: None }
    }

    /// What to write to the user for L1's line `json`; nothing for one that cannot be read.
    pub fn show(&mut self, json: &str) -> String {
        let Ok(sample) = serde_json::from_str::<Sample>(json) else { return String::new() };
        let rows = rows(self.before.as_ref(), &sample);
        let text = match self.style {
            Style::Screen => screen(sample.ms, &rows),
            Style::Lines => lines(sample.ms, &rows),
        };
        self.before = Some(sample);
        text
    }
}

fn rows(before: Option<&Sample>, now: &Sample) -> Vec<Row> {
    let elapsed = (now.ms - before.map_or(0, |before| before.ms).min(now.ms)).max(1);
    let before: HashMap<_, _> = before
        .iter()
        .flat_map(|sample| &sample.guests)
        .map(|guest| (guest.name.as_str(), &guest.vcpus))
        .collect();
    let mut rows = Vec::new();
    for guest in &now.guests {
        for (vcpu, counts) in guest.vcpus.iter().enumerate() {
            let earlier = before.get(guest.name.as_str()).and_then(|vcpus| vcpus.get(vcpu));
            let rate = |reason: &String, count: u64| {
                let earlier = earlier.and_then(|counts| counts.get(reason)).copied().unwrap_or(0);
                // A guest that was started again counts from 0.
                let new = count.checked_sub(earlier).unwrap_or(count);
                new.saturating_mul(1000) / elapsed
            };
            let mut reasons: Vec<_> =
                counts.iter().map(|(reason, &n)| (reason.clone(), rate(reason, n))).collect();
            let sum = reasons.iter().map(|(_, rate)| rate).sum();
            reasons.retain(|(_, rate)| *rate > 0);
            reasons.sort_by_key(|(_, rate)| std::cmp::Reverse(*rate));
            reasons.truncate(REASONS);
            rows.push(Row { name: guest.name.clone(), vcpu, rate: sum, reasons });
        }
    }
    rows
}

impl Row {
    fn reasons(&self) -> String {
        let words = self.reasons.iter().map(|(reason, rate)| format!("{reason} {rate}"));
        words.collect::<Vec<_>>().join(", ")
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{}", ms / 1000, ms % 1000 / 100)
}

fn lines(ms: u64, rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let Row { name, vcpu, rate, .. } = row;
        let reasons = row.reasons();
        let separator = if reasons.is_empty() { "" } else { ": " };
        let _ = writeln!(
            text,
            "roost: {} s: {name} vCPU {vcpu}: {rate} exits/s{separator}{reasons}",
            seconds(ms)
        );
    }
    text
}

/// Saves the cursor, writes over the top lines in reverse video, and puts the cursor back: the console
/// may be on the same terminal.
fn screen(ms: u64, rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(5);
    let title = format!("{:<width$}  vCPU  exits/s  at {} s", "guest", seconds(ms));
    let body = rows.iter().map(|row| {
        let Row { name, vcpu, rate, .. } = row;
        format!("{name:<width$}  {vcpu:>4}  {rate:>7}  {}", row.reasons())
    });
    let mut text = String::from("\x1b7");
    for (number, line) in std::iter::once(title).chain(body).enumerate() {
        let _ = write!(text, "\x1b[{};1H\x1b[7m{line}\x1b[K\x1b[0m", number + 1);
    }
    text.push_str("\x1b8");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str =
        r#"{"ms":1000,"guests":[{"name":"a","vcpus":[{"timer":250,"halt":50},{}]}]}"#;
    const SECOND: &str = r#"{"ms":3000,"guests":[
        {"name":"a","vcpus":[{"timer":750,"halt":50,"kick":2},{"kick":4}]}, {"name":"b","vcpus":[{}]}]}"#;

    #[test]
    fn lines_say_what_was_new() {
        let mut live = Live::new(Style::Lines);
        let first = "roost: 1.0 s: a vCPU 0: 300 exits/s: timer 250, halt 50\n\
                     roost: 1.0 s: a vCPU 1: 0 exits/s\n";
        assert_eq!(live.show(FIRST), first);
        assert_eq!(live.show("{"), "");
        let second = "roost: 3.0 s: a vCPU 0: 251 exits/s: timer 250, kick 1\n\
                      roost: 3.0 s: a vCPU 1: 2 exits/s: kick 2\n\
                      roost: 3.0 s: b vCPU 0: 0 exits/s\n";
        assert_eq!(live.show(SECOND), second);
    }

    #[test]
    fn a_guest_that_starts_again_counts_from_zero() {
        let mut live = Live::new(Style::Lines);
        live.show(FIRST);
        let again = r#"{"ms":2000,"guests":[{"name":"a","vcpus":[{"timer":10}]}]}"#;
        assert_eq!(live.show(again), "roost: 2.0 s: a vCPU 0: 10 exits/s: timer 10\n");
    }

    #[test]
    fn the_screen_is_as_it_was_but_for_the_top() {
        let text = Live::new(Style::Screen).show(FIRST);
        assert!(text.starts_with("\x1b7\x1b[1;1H") && text.ends_with("\x1b8"), "{text:?}");
        assert!(text.contains("guest  vCPU  exits/s  at 1.0 s"), "{text:?}");
        assert!(
            text.contains("\x1b[2;1H\x1b[7ma         0      300  timer 250, halt 50"),
            "{text:?}"
        );
        assert!(!text.contains('\n'));
    }
}
