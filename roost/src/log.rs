//! Reads what the tool needs from L1's log.
//! Input: written by L1, which quotes guests: any bytes.

use pv_abi::bundle::{REPORT_PREFIX, STATS_PREFIX, TRACE_PREFIX};
use serde_json::Value;
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

/// The lines of interest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Lines meant for the user, without their prefix.
    pub reports: Vec<String>,
    /// Statistics of all guests as JSON, if L1 gave any.
    pub stats: Option<String>,
    /// Guests whose last exits are in it.
    pub traced: Vec<String>,
    /// Whether L1 said anything at all.
    pub spoke: bool,
}

impl Log {
    /// Reads a log file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::parse(BufReader::new(File::open(path)?))
    }

    fn parse(mut log: impl BufRead) -> io::Result<Self> {
        let (mut found, mut line) = (Self::default(), Vec::new());
        while log.read_until(b'\n', &mut line)? > 0 {
            found.spoke = true;
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']);
            if let Some(report) = text.strip_prefix(REPORT_PREFIX) {
                found.reports.push(printable(report));
            } else if let Some(stats) = text.strip_prefix(STATS_PREFIX) {
                found.stats = Some(match found.stats.take() {
                    Some(earlier) => joined(&earlier, stats),
                    None => stats.into(),
                });
            }
            let trace =
                text.strip_prefix(TRACE_PREFIX).and_then(|text| text.strip_prefix("begin '"));
            if let Some((name, _)) = trace.and_then(|text| text.rsplit_once('\''))
                && !found.traced.iter().any(|known| known == name)
            {
                found.traced.push(printable(name));
            }
            line.clear();
        }
        Ok(found)
    }
}

/// Statistics of which `later` continues the list of guests; what cannot be joined gives way to it.
fn joined(earlier: &str, later: &str) -> String {
    let guests = |json| -> Option<(Value, Vec<Value>)> {
        let mut all: Value = serde_json::from_str(json).ok()?;
        let guests = all.get_mut("guests")?.as_array_mut().map(std::mem::take)?;
        Some((all, guests))
    };
    match (guests(earlier), guests(later)) {
        (Some((mut all, mut list)), Some((_, more))) => {
            list.extend(more);
            all["guests"] = list.into();
            all.to_string()
        }
        _ => later.into(),
    }
}

/// Guests' words must not move the user's cursor or change their terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_pick_the_lines() {
        let text =
            b"boot\r\n@report it died\r\n@stats {\"a\":1}\n @report no\n@report of \xff\x1b[2J";
        let log = Log::parse(&text[..]).unwrap();
        assert_eq!(log.reports, ["it died", "of \u{fffd}\u{fffd}[2J"]);
        assert_eq!(log.stats.as_deref(), Some("{\"a\":1}"));
        assert!(log.spoke);
    }

    #[test]
    fn guests_with_a_trace_are_named_once() {
        let text = "@trace begin 'a b': 2 exits\n@trace 1.5 vcpu=0\n@trace end 'a b'\n\
                    @trace begin 'a b': 1 exits\n@trace begin 'c': 0 exits\n";
        assert_eq!(Log::parse(text.as_bytes()).unwrap().traced, ["a b", "c"]);
    }

    #[test]
    fn statistics_of_several_guests_are_joined() {
        let stats = |text: &str| Log::parse(text.as_bytes()).unwrap().stats.unwrap();
        let (a, b) = (r#"{"guests":[{"name":"a"}]}"#, r#"{"guests":[{"name":"b"}]}"#);
        let both = r#"{"guests":[{"name":"a"},{"name":"b"}]}"#;
        assert_eq!(stats(&format!("@stats {a}\n@stats {b}\n")), both);
        assert_eq!(stats(&format!("@stats {a}\n@stats 1\n@stats {b}\n")), b);
    }

    #[test]
    fn silence_is_seen() {
        assert_eq!(Log::parse(&b""[..]).unwrap(), Log::default());
    }
}
