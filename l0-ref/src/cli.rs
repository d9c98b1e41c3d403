//! Defines the command line.

use clap::{Parser, ValueHint};
use std::path::PathBuf;

const STATUS: &str = "\
Exit status:
  0    the guest powered off (or asked for a restart, which ends it too), or the user quit
  2    something was wrong before the start
  3    the guest died or could not be started
  4    L1 failed, or KVM did
  128+n  signal n ended the run";

/// Boots L1 on KVM, without VMX or SVM; L1's guest has its console on standard input and output.
#[derive(Clone, Debug, Parser)]
#[command(name = "l0-ref", version, after_help = STATUS)]
pub struct Cli {
    /// The image to boot: an ELF file with a PVH entry point
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub l1: PathBuf,
    /// Its module: what `roost run --pack` wrote
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub module: Option<PathBuf>,
    /// Its command line
    #[arg(long, value_name = "STR", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Its memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub memory: u64,
    /// Its CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u8,
    /// Write L1's log, its second serial port, to FILE
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub log: Option<PathBuf>,
    /// Do not offer the L0-L1 ABI
    #[arg(long)]
    pub hide_abi: bool,
    /// Withdraw everything the ABI offers after so many seconds, as an L0 does that is downgraded
    #[arg(long, value_name = "SECONDS", conflicts_with = "hide_abi")]
    pub withdraw: Option<u64>,
    /// Say at the end what was counted, and whether L1 left anything behind in this process
    #[arg(long, conflicts_with = "hide_abi")]
    pub stats: bool,
    /// Plant this bug
    #[cfg(feature = "flaws")]
    #[arg(long, value_name = "NAME")]
    pub flaw: Option<crate::flaw::Flaw>,
    /// The device of KVM
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm")]
    pub kvm: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
