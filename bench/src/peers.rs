//! Holds the recorded figures of other systems on the same emulated machine.

use serde::Deserialize;
use std::collections::BTreeMap;

/// Key of the configuration that the others are compared with.
pub const NATIVE: &str = "native";

/// One measured configuration.
#[derive(Clone, Debug, Deserialize)]
pub struct Configuration {
    /// Key of its figures.
    pub key: String,
    /// Column title.
    pub title: String,
    /// What was run.
    pub what: String,
}

/// All recorded figures.
#[derive(Clone, Debug, Deserialize)]
pub struct Peers {
    /// What the figures count.
    pub metric: String,
    /// The kernel they were measured with.
    pub kernel: String,
    /// When.
    pub measured: String,
    /// Configurations in the order of the table.
    pub configurations: Vec<Configuration>,
    /// Figures by configuration and row.
    pub min: BTreeMap<String, BTreeMap<String, f64>>,
    /// The ratio to native that we want, by row.
    pub target: BTreeMap<String, f64>,
}

impl Peers {
    /// The figures recorded with this program.
    ///
    /// # Errors
    /// The file that was compiled in does not hold them.
    pub fn recorded() -> Result<Self, serde_json::Error> {
        serde_json::from_str(include_str!("../peers.json"))
    }

    /// A configuration's cost as a multiple of its native kernel's.
    #[must_use]
    pub fn ratio(&self, configuration: &str, row: &str) -> Option<f64> {
        let of = |key: &str| self.min.get(key)?.get(row).copied();
        Some(of(configuration)? / of(NATIVE).filter(|native| *native > 0.0)?)
    }

    /// Configurations other than native.
    pub fn others(&self) -> impl Iterator<Item = &Configuration> {
        self.configurations.iter().filter(|configuration| configuration.key != NATIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_file_is_whole() {
        let peers = Peers::recorded().unwrap();
        assert!(peers.configurations.iter().all(|c| peers.min.contains_key(&c.key)));
        assert_eq!(peers.others().count(), peers.min.len() - 1);
        assert!(peers.target.keys().all(|row| peers.min[NATIVE].contains_key(row)));
    }

    #[test]
    fn ratios_are_to_the_same_systems_native_run() {
        let peers = Peers::recorded().unwrap();
        let ratio = peers.ratio("xen_pv", "getppid").unwrap();
        assert!((ratio - 2.603).abs() < 0.001, "{ratio}");
        assert_eq!(peers.ratio("kvm_npt", "outb_0x80"), None);
        assert_eq!(peers.ratio("nobody", "getppid"), None);
    }
}
