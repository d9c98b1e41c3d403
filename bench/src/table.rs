//! Puts our readings beside each other and beside those of peers.

use crate::{lines::Log, peers::Peers};
use serde::Serialize;

/// One row of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The row's name.
    pub name: String,
    /// Instructions on the machine itself.
    pub native: Option<f64>,
    /// Instructions in a guest of Roost.
    pub guest: Option<f64>,
    /// Peers' cost as multiples of their native run, in the order of [`Peers::others`].
    pub peers: Vec<Option<f64>>,
    /// The multiple that we want.
    pub target: Option<f64>,
}

/// Whether a row is as cheap as we want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is no target, or nothing to compare.
    Open,
    /// It is.
    Met,
    /// It is not.
    Missed,
}

impl Line {
    /// The guest's cost as a multiple of native.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        Some(self.guest? / self.native.filter(|native| *native > 0.0)?)
    }

    /// Compares the ratio with the target, at the precision that is printed.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match (self.ratio(), self.target) {
            (Some(ratio), Some(target)) if (ratio * 100.0).round() <= target * 100.0 => {
                Verdict::Met
            }
            (Some(_), Some(_)) => Verdict::Missed,
            _ => Verdict::Open,
        }
    }
}

/// Compares two logs, in the order of the native one; rows that only the guest has follow.
#[must_use]
pub fn compare(native: &Log, guest: Option<&Log>, peers: &Peers) -> Vec<Line> {
    let guest_rows = guest.map_or(&[][..], |log| &log.readings);
    let only_guest = guest_rows.iter().filter(|row| native.reading(&row.name).is_none());
    let line = |name: &String| Line {
        name: name.clone(),
        native: native.reading(name).map(|row| row.min_tsc),
        guest: guest.and_then(|log| log.reading(name)).map(|row| row.min_tsc),
        peers: peers.others().map(|peer| peers.ratio(&peer.key, name)).collect(),
        target: peers.target.get(name).copied(),
    };
    native.readings.iter().chain(only_guest).map(|row| line(&row.name)).collect()
}

/// Titles of the table's columns.
#[must_use]
pub fn titles(peers: &Peers) -> Vec<String> {
    let ours = ["operation", "native", "Roost", "ratio", "target"].map(str::to_owned);
    ours.into_iter().chain(peers.others().map(|peer| peer.title.clone())).collect()
}

/// A line's cells, under [`titles`].
#[must_use]
pub fn cells(line: &Line) -> Vec<String> {
    let ratio = |value: Option<f64>| value.map_or("-".into(), |ratio| format!("{ratio:.2}"));
    let mark = if line.verdict() == Verdict::Missed { " !" } else { "" };
    let ours = [
        line.name.clone(),
        cost(line.native),
        cost(line.guest),
        format!("{}{mark}", ratio(line.ratio())),
        ratio(line.target),
    ];
    ours.into_iter().chain(line.peers.iter().map(|peer| ratio(*peer))).collect()
}

/// Instructions with separators; small numbers keep their fraction.
fn cost(value: Option<f64>) -> String {
    let Some(value) = value else { return "-".into() };
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A table for a terminal.
#[must_use]
pub fn text(lines: &[Line], peers: &Peers) -> String {
    let rows: Vec<Vec<String>> =
        std::iter::once(titles(peers)).chain(lines.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let cell =
                if column == 0 { format!("{cell:width$}") } else { format!("  {cell:>width$}") };
            text.push_str(&cell);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::Reading;

    fn log(rows: &[(&str, f64)]) -> Log {
        let reading = |&(name, tsc): &(&str, f64)| Reading {
            name: name.into(),
            n: 1,
            min_tsc: tsc,
            med_tsc: tsc,
            min_ns: tsc,
            med_ns: tsc,
        };
        Log { readings: rows.iter().map(reading).collect(), ..Log::default() }
    }

    #[test]
    fn rows_of_both_sides_are_paired() {
        let peers = Peers::recorded().unwrap();
        let native = log(&[("getppid", 400.0), ("noop", 3.0)]);
        let guest = log(&[("getppid", 500.0), ("new", 7.0)]);
        let lines = compare(&native, Some(&guest), &peers);
        let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["getppid", "noop", "new"]);
        assert_eq!(lines[0].ratio(), Some(1.25));
        assert_eq!((lines[1].guest, lines[2].native), (None, None));
        assert_eq!(lines[0].peers.len(), peers.others().count());
    }

    #[test]
    fn targets_are_compared_as_printed() {
        let line = |guest| Line {
            name: "x".into(),
            native: Some(1000.0),
            guest: Some(guest),
            peers: Vec::new(),
            target: Some(1.5),
        };
        assert_eq!(line(1504.0).verdict(), Verdict::Met);
        assert_eq!(line(1506.0).verdict(), Verdict::Missed);
        assert_eq!(Line { target: None, ..line(9.0) }.verdict(), Verdict::Open);
        assert_eq!(Line { guest: None, ..line(9.0) }.verdict(), Verdict::Open);
    }

    #[test]
    fn the_text_is_aligned_and_marks_misses() {
        let peers = Peers::recorded().unwrap();
        let native = log(&[("getppid", 383.0), ("fork_exit", 167_579.0)]);
        let guest = log(&[("getppid", 800.0), ("fork_exit", 200_000.0)]);
        let text = text(&compare(&native, Some(&guest), &peers), &peers);
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{text}");
        assert!(rows[1].contains("2.09 !") && rows[2].contains("167,579"), "{text}");
    }
}
