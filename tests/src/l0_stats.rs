//! Reads what l0-ref says with `--stats`.

use serde_json::Value;

/// Statistics of a run of l0-ref.
#[derive(Clone, Debug, PartialEq)]
pub struct L0Stats(Value);

/// Growth of l0-ref's own memory that is no leak, KiB: stacks, and what an allocator keeps.
const GROWTH: u64 = 2048;

impl L0Stats {
    /// Finds them on the console.
    ///
    /// # Panics
    /// They are not there.
    #[must_use]
    pub fn parse(console: &str) -> Self {
        let line = console.lines().find_map(|line| line.trim_end().strip_prefix("l0-ref: stats "));
        let line = line.unwrap_or_else(|| panic!("no statistics: {console}"));
        Self(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
    }

    /// A counter.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_else(|| panic!("no counter {name}: {}", self.0))
    }

    /// How often L1 was entered because a RUN returned.
    #[must_use]
    pub fn entries(&self) -> u64 {
        let reasons = self.0["entries"].as_object().into_iter().flat_map(|all| all.values());
        reasons.filter_map(Value::as_u64).sum()
    }

    /// Judges that L1 left nothing behind in the process, and changed nothing there.
    ///
    /// # Panics
    /// Something is not so.
    pub fn assert_clean(&self) {
        let [before, after] = self.pair("descriptors");
        assert!(after <= before, "descriptors are left: {}", self.0);
        let [before_mapped, mapped] = self.pair("mappings");
        assert_eq!(mapped, before_mapped, "L1's memory is still mapped: {}", self.0);
        let [small, large] = self.pair("memory_kib");
        assert!(large <= small + GROWTH, "memory is left: {}", self.0);
        assert!(before > 3 && before_mapped > 0 && small > 0, "nothing was looked at: {}", self.0);
        assert_eq!(self.0["canary"], true, "{}", self.0);
    }

    fn pair(&self, name: &str) -> [u64; 2] {
        [0, 1].map(|index| {
            self.0[name][index].as_u64().unwrap_or_else(|| panic!("no {name}: {}", self.0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = r#"{"calls":3,"entries":{"Io":1,"Deadline":2},"descriptors":[13,12],
        "mappings":[1,1],"memory_kib":[6296,6540],"canary":true}"#;

    fn stats(json: &str) -> L0Stats {
        L0Stats::parse(&format!("x\r\nl0-ref: stats {}\r\n", json.replace('\n', "")))
    }

    #[test]
    fn counts_are_read() {
        let stats = stats(CLEAN);
        assert_eq!((stats.counter("calls"), stats.entries()), (3, 3));
        stats.assert_clean();
    }

    #[test]
    fn what_is_left_is_seen() {
        for (clean, left) in
            [("[13,12]", "[13,14]"), ("[1,1]", "[1,2]"), ("6540", "9000"), ("true", "false")]
        {
            let stats = stats(&CLEAN.replace(clean, left));
            assert!(std::panic::catch_unwind(|| stats.assert_clean()).is_err(), "{left}");
        }
    }
}
