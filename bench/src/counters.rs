//! Works out L1's counters per operation from a run with marks.
//!
//! The guest prints `@B NAME` and `@E NAME N` around a batch ([`crate::lines`]). Each time L1 sees
//! such a line on the guest's console it logs `@mark LINE {json}`: the guest's line and all
//! counters at that moment, as numbers, possibly in nested objects. What the batch cost is the
//! difference; the empty row `noop` shows what the marks themselves cost, and is subtracted.

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Ahead of L1's lines.
pub const MARK: &str = "@mark ";
/// The row that does nothing.
const EMPTY: &str = "noop";

/// Counters by name; names of nested ones are joined with dots.
pub type Counters = BTreeMap<String, f64>;

/// What one row cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counted {
    /// The row's name.
    pub name: String,
    /// Operations counted.
    pub n: u64,
    /// Counts per operation; those that stayed zero are left out.
    pub per_operation: Counters,
}

/// Reads a log of L1. Batches whose end is missing are left out.
///
/// # Errors
/// A line that cannot be read: L1 and this program disagree.
pub fn per_operation(log: &str) -> Result<Vec<Counted>, String> {
    let mut begun: Option<(String, Counters)> = None;
    let mut counted: Vec<(String, u64, Counters)> = Vec::new();
    for line in log.lines() {
        match Mark::parse(line)? {
            Some(Mark::Begin(name, counters)) => begun = Some((name, counters)),
            Some(Mark::End(name, n, after)) => {
                if let Some((_, before)) = begun.take().filter(|(begun, _)| *begun == name) {
                    counted.push((name, n, difference(&after, &before)));
                }
            }
            None => {}
        }
    }
    let empty = counted.iter().find(|(name, ..)| name == EMPTY).map(|(.., counts)| counts.clone());
    let empty = empty.unwrap_or_default();
    let rows = counted.into_iter().map(|(name, n, counts)| {
        let own = if name == EMPTY { counts } else { difference(&counts, &empty) };
        let each = own.into_iter().map(|(key, count)| (key, count / n.max(1) as f64));
        Counted { name, n, per_operation: each.filter(|(_, count)| *count != 0.0).collect() }
    });
    Ok(rows.collect())
}

enum Mark {
    Begin(String, Counters),
    End(String, u64, Counters),
}

impl Mark {
    fn parse(line: &str) -> Result<Option<Self>, String> {
        let Some(at) = line.find(MARK) else { return Ok(None) };
        let Some((label, json)) = line[at + MARK.len()..].split_once('{') else {
            return Err(format!("a mark without counters: {line}"));
        };
        let words: Vec<&str> = label.split_whitespace().collect();
        let counters = || {
            let value = serde_json::from_str(&format!("{{{json}"));
            let value = value.map_err(|error| format!("{error} in: {line}"))?;
            let mut counters = Counters::new();
            flatten("", &value, &mut counters);
            Ok::<_, String>(counters)
        };
        match words[..] {
            ["@B", name] => Ok(Some(Self::Begin(name.into(), counters()?))),
            ["@E", name, n] => {
                let n = n.parse().map_err(|error| format!("{error} in: {line}"))?;
                Ok(Some(Self::End(name.into(), n, counters()?)))
            }
            _ => Err(format!("not a mark of the benchmark: {line}")),
        }
    }
}

fn flatten(prefix: &str, value: &Value, counters: &mut Counters) {
    match value {
        Value::Number(number) => {
            counters.insert(prefix.into(), number.as_f64().unwrap_or_default());
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(&format!("{prefix}{dot}{name}"), field, counters);
            }
        }
        // Histograms and texts are not differences.
        _ => {}
    }
}

fn difference(after: &Counters, before: &Counters) -> Counters {
    let names = after.keys().chain(before.keys().filter(|name| !after.contains_key(*name)));
    let of = |counters: &Counters, name: &String| counters.get(name).copied().unwrap_or_default();
    names.map(|name| (name.clone(), of(after, name) - of(before, name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"[1.0] start
@mark @B noop {"exits":100,"cr3_writes":10,"by":{"io":1}}
@mark @E noop 1000 {"exits":104,"cr3_writes":12,"by":{"io":5}}
@mark @B getppid {"exits":110,"cr3_writes":12,"by":{"io":5},"hist":[1,2]}
[2.0] between
@mark @E getppid 50 {"exits":214,"cr3_writes":114,"by":{"io":9,"syscall":100},"hist":[3]}
@mark @B cut {"exits":300}
"#;

    #[test]
    fn counts_are_per_operation_and_without_the_marks() {
        let rows = per_operation(LOG).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[1].name.as_str(), rows[1].n), ("getppid", 50));
        let own = &rows[1].per_operation;
        assert_eq!(own["exits"], 2.0);
        assert_eq!(own["cr3_writes"], 2.0);
        assert_eq!(own["by.syscall"], 2.0);
        assert!(!own.contains_key("by.io"), "the console's own exits are subtracted");
        assert!(!own.contains_key("hist"));
    }

    #[test]
    fn lines_that_cannot_be_read_are_refused() {
        assert!(per_operation("@mark @B noop").is_err());
        assert!(per_operation("@mark @E noop x {}").is_err());
        assert!(per_operation("@mark @X {}").is_err());
        assert!(per_operation("@mark @B noop {\"a\":").is_err());
        assert_eq!(per_operation("nothing here").unwrap(), []);
    }
}
