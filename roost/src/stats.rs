//! Shows the statistics that L1 prints when a guest ends.
//! Input: JSON written by L1; keys this version does not know are ignored.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt};

/// Statistics of a run.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Stats {
    #[serde(default)]
    guests: Vec<GuestStats>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct GuestStats {
    #[serde(default)]
    name: String,
    /// TSC ticks per second.
    #[serde(default)]
    tsc_hz: u64,
    #[serde(default)]
    exits: BTreeMap<String, Exit>,
    #[serde(default)]
    counters: BTreeMap<String, u64>,
    /// The same of each vCPU.
    #[serde(default)]
    vcpus: Vec<VcpuStats>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct VcpuStats {
    #[serde(default)]
    exits: BTreeMap<String, Exit>,
    #[serde(default)]
    counters: BTreeMap<String, u64>,
}

/// One exit reason.
#[derive(Clone, Debug, Default, Deserialize)]
struct Exit {
    #[serde(default)]
    count: u64,
    /// Element n counts the exits that took 2^n to 2^(n+1) - 1 ticks of the TSC.
    #[serde(default)]
    log2_ticks: Vec<u64>,
}

impl Stats {
    /// Reads the JSON.
    ///
    /// # Errors
    /// It is no JSON of the expected shape.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json).context("L1's statistics are no JSON this version can read")
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for guest in &self.guests {
            writeln!(f, "guest {}", guest.name)?;
            f.write_str(&table(&guest.exit_rows()))?;
            f.write_str(&table(&guest.counter_rows()))?;
            f.write_str(&table(&guest.vcpu_rows()))?;
        }
        Ok(())
    }
}

impl GuestStats {
    fn exit_rows(&self) -> Vec<Vec<String>> {
        let mut exits: Vec<_> = self.exits.iter().filter(|(_, exit)| exit.count > 0).collect();
        exits.sort_by_key(|(_, exit)| std::cmp::Reverse(exit.count));
        let row = |(name, exit): (&String, &Exit)| {
            vec![
                name.clone(),
                grouped(exit.count),
                exit.below(50).map_or_else(String::new, |ticks| self.time(ticks)),
                exit.below(99).map_or_else(String::new, |ticks| self.time(ticks)),
            ]
        };
        with_title(["exit", "count", "50% below", "99% below"], exits.into_iter().map(row))
    }

    /// A number of ticks, in words.
    fn time(&self, ticks: u64) -> String {
        let ns = u128::from(ticks) * 1_000_000_000 / u128::from(self.tsc_hz.max(1));
        nanoseconds(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    fn counter_rows(&self) -> Vec<Vec<String>> {
        let rows = self.counters.iter().map(|(name, value)| vec![name.clone(), grouped(*value)]);
        with_title(["counter", "value"], rows)
    }
}

impl GuestStats {
    /// Of several vCPUs, what each had to do.
    fn vcpu_rows(&self) -> Vec<Vec<String>> {
        if self.vcpus.len() < 2 {
            return Vec::new();
        }
        let row = |(index, vcpu): (usize, &VcpuStats)| {
            let sum = vcpu.exits.values().map(|exit| exit.count).sum();
            let most = vcpu.exits.iter().max_by_key(|(_, exit)| exit.count);
            let most = most.map(|(name, exit)| format!("{name} {}", grouped(exit.count)));
            let events = vcpu.counters.get("events").copied().unwrap_or_default();
            vec![index.to_string(), grouped(sum), grouped(events), most.unwrap_or_default()]
        };
        with_title(["vCPU", "exits", "events", "most"], self.vcpus.iter().enumerate().map(row))
    }
}

impl Exit {
    /// A number of ticks that `percent` of the exits stayed below; `None` without a histogram.
    fn below(&self, percent: u64) -> Option<u64> {
        let total: u64 = self.log2_ticks.iter().sum();
        let wanted = (total * percent).div_ceil(100);
        let mut seen = 0;
        let bucket = self.log2_ticks.iter().position(|count| {
            seen += count;
            seen >= wanted && seen > 0
        })?;
        1u64.checked_shl(u32::try_from(bucket).ok()? + 1)
    }
}

fn with_title<const N: usize>(
    title: [&str; N],
    rows: impl Iterator<Item = Vec<String>>,
) -> Vec<Vec<String>> {
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return rows;
    }
    std::iter::once(title.map(String::from).into()).chain(rows).collect()
}

/// First column to the left, the others to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line.push_str(&match column {
                0 => format!(" {cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            });
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// 1234567 as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn nanoseconds(ns: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let ns_float = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", ns_float / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns_float / 1e6),
        _ => format!("{:.1} s", ns_float / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_everything_known() {
        let stats = Stats::parse(
            r#"{"version":3,"guests":[{"name":"g","tsc_hz":1000000000,"uptime":1,
                "exits":{"page_fault":{"count":1200,"log2_ticks":[0,0,0,0,0,0,0,0,600,590,10],"x":0},
                         "hypercall":{"count":7000},
                         "never":{"count":0,"log2_ticks":[]}},
                "counters":{"fills":12345678,"flushes":0}}]}"#,
        )
        .unwrap();
        let expected = "\
guest g
  exit        count  50% below  99% below
  hypercall   7,000
  page_fault  1,200     512 ns     1.0 us
  counter       value
  fills    12,345,678
  flushes           0
";
        assert_eq!(stats.to_string(), expected);
    }

    #[test]
    fn several_vcpus_are_told_apart() {
        let vcpus = r#"[{"exits":{"halt":{"count":1200},"kick":{"count":3}},"counters":{"events":5}},
                        {"exits":{},"counters":{}}]"#;
        let stats =
            Stats::parse(&format!(r#"{{"guests":[{{"name":"g","vcpus":{vcpus}}}]}}"#)).unwrap();
        let expected = "\
guest g
  vCPU  exits  events        most
  0     1,203       5  halt 1,200
  1         0       0
";
        assert_eq!(stats.to_string(), expected);
    }

    #[test]
    fn missing_keys_are_no_error() {
        assert_eq!(Stats::parse("{}").unwrap().to_string(), "");
        let bare = Stats::parse(r#"{"guests":[{"name":"g"}]}"#).unwrap();
        assert_eq!(bare.to_string(), "guest g\n");
        assert!(Stats::parse("{\"guests\":").is_err());
    }

    #[test]
    fn percentiles_are_upper_bounds() {
        let exit = |log2: &[u64]| Exit { count: 1, log2_ticks: log2.into() };
        assert_eq!(exit(&[]).below(50), None);
        assert_eq!(exit(&[0, 0]).below(50), None);
        assert_eq!(exit(&[1]).below(99), Some(2));
        assert_eq!(exit(&[99, 0, 1]).below(99), Some(2));
        assert_eq!(exit(&[98, 0, 2]).below(99), Some(8));
    }

    #[test]
    fn times_have_readable_units() {
        assert_eq!(nanoseconds(999), "999 ns");
        assert_eq!(nanoseconds(2048), "2.0 us");
        assert_eq!(nanoseconds(1 << 21), "2.1 ms");
        assert_eq!(nanoseconds(1 << 31), "2.1 s");
    }
}
