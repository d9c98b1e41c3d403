//! Defines the lines that the guest benchmark prints, and reads them back.
//!
//! | line | meaning |
//! |---|---|
//! | `@I NAME VALUE` | a fact about machine, kernel or start |
//! | `@R {"name":..,"n":..,"min_tsc":..,"med_tsc":..,"min_ns":..,"med_ns":..}` | cost of one operation: minimum and median over batches of `n` |
//! | `@S NAME REASON` | a row that could not be measured |
//! | `@C {"name":..,"n":..,"counts":{..}}` | what L1 counted in a batch of `n` operations |
//! | `@DONE` | the benchmark has ended |

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The last line.
pub const DONE: &str = "@DONE";
/// What `calib_2M_insns_tsc` reads where a TSC tick is one instruction.
pub const CALIBRATION: u64 = 2_000_004;
/// Name of the fact that holds the calibration.
pub const CALIBRATION_FACT: &str = "calib_2M_insns_tsc";

/// The cost of one operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The row's name.
    pub name: String,
    /// Operations of one batch.
    pub n: u64,
    /// TSC ticks, smallest batch.
    pub min_tsc: f64,
    /// TSC ticks, median batch.
    pub med_tsc: f64,
    /// Nanoseconds, smallest batch.
    pub min_ns: f64,
    /// Nanoseconds, median batch.
    pub med_ns: f64,
}

/// What L1 counted in one batch, counting it included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// The row's name.
    pub name: String,
    /// Operations of the batch.
    pub n: u64,
    /// By counter. Those of exit reasons start with `by.`; those that stayed zero are left out.
    pub counts: BTreeMap<String, u64>,
}

/// The line of a fact.
#[must_use]
pub fn info(name: &str, value: &str) -> String {
    format!("@I {name} {value}")
}

/// The line of a reading.
#[must_use]
pub fn reading(reading: &Reading) -> String {
    let Reading { name, n, min_tsc, med_tsc, min_ns, med_ns } = reading;
    format!(
        "@R {{\"name\":\"{name}\",\"n\":{n},\"min_tsc\":{min_tsc:.2},\"med_tsc\":{med_tsc:.2},\
         \"min_ns\":{min_ns:.2},\"med_ns\":{med_ns:.2}}}"
    )
}

/// The line of a row that was not measured.
#[must_use]
pub fn skip(name: &str, reason: &str) -> String {
    format!("@S {name} {}", reason.replace('\n', " "))
}

/// The line of a counted batch.
#[must_use]
pub fn counts(counts: &Counts) -> String {
    let Counts { name, n, counts } = counts;
    let each: Vec<_> = counts.iter().map(|(key, count)| format!("\"{key}\":{count}")).collect();
    format!("@C {{\"name\":\"{name}\",\"n\":{n},\"counts\":{{{}}}}}", each.join(","))
}

/// Everything that a console log says.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Log {
    /// Facts.
    pub info: BTreeMap<String, String>,
    /// Readings, in the order of the log.
    pub readings: Vec<Reading>,
    /// Batches counted, in the order of the log.
    pub counted: Vec<Counts>,
    /// Rows not measured, and why.
    pub skipped: BTreeMap<String, String>,
    /// Whether the benchmark came to its end.
    pub done: bool,
}

impl Log {
    /// Reads a log. Lines of others are passed over; a line of ours may follow other output.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut log = Self::default();
        for line in text.lines().map(str::trim_end) {
            if let Some(json) = after(line, "@R ") {
                log.readings.extend(serde_json::from_str::<Reading>(json));
            } else if let Some(json) = after(line, "@C ") {
                log.counted.extend(serde_json::from_str::<Counts>(json));
            } else if let Some((name, value)) = after(line, "@I ").and_then(|l| l.split_once(' ')) {
                log.info.insert(name.into(), value.into());
            } else if let Some((name, why)) = after(line, "@S ").and_then(|l| l.split_once(' ')) {
                log.skipped.insert(name.into(), why.into());
            } else if line.ends_with(DONE) {
                log.done = true;
            }
        }
        log
    }

    /// A row's reading.
    #[must_use]
    pub fn reading(&self, name: &str) -> Option<&Reading> {
        self.readings.iter().find(|reading| reading.name == name)
    }

    /// What 2,000,000 instructions took.
    #[must_use]
    pub fn calibration(&self) -> Option<u64> {
        self.info.get(CALIBRATION_FACT)?.parse().ok()
    }
}

fn after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.find(mark).map(|at| &line[at + mark.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Reading {
        Reading {
            name: "getppid".into(),
            n: 5222,
            min_tsc: 383.0,
            med_tsc: 383.25,
            min_ns: 384.5,
            med_ns: 385.0,
        }
    }

    #[test]
    fn a_reading_survives_the_console() {
        let text = format!("[    1.0] x\r\n{}\r\n", reading(&sample()));
        assert_eq!(Log::parse(&text).readings, [sample()]);
    }

    #[test]
    fn counts_survive_the_console() {
        let sample = Counts {
            name: "fork_exit".into(),
            n: 10,
            counts: [("by.timer".into(), 1), ("exits".into(), 25)].into(),
        };
        assert_eq!(Log::parse(&format!("{}\r\n", counts(&sample))).counted, [sample]);
    }

    #[test]
    fn a_log_is_read_whole() {
        let text = "boot @I ncpu 1\n@I version Linux version 6.1\n@S pf_storm_2t needs 2 CPUs\n\
            @R {\"name\":\"broken\n@I calib_2M_insns_tsc 2000004\n@DONE\n";
        let log = Log::parse(text);
        assert_eq!(log.info["version"], "Linux version 6.1");
        assert_eq!(log.skipped["pf_storm_2t"], "needs 2 CPUs");
        assert_eq!(log.calibration(), Some(CALIBRATION));
        assert!(log.readings.is_empty() && log.done);
        assert!(!Log::parse("@I a b").done);
    }

    #[test]
    fn the_rulers_longer_lines_are_read_too() {
        let line = "@R {\"name\":\"noop\",\"n\":3,\"med_ns\":3.0,\"min_ns\":3.0,\"med_tsc\":3.0,\
            \"min_tsc\":3.0,\"ns\":[3.0],\"tsc\":[3.0]}";
        assert_eq!(Log::parse(line).readings[0].min_tsc, 3.0);
    }
}
