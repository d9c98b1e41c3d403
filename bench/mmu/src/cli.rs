//! Defines the command line.

use clap::{Parser, ValueHint};
use mmu_bench::report::measure::{Cores, Plan};
use std::{
    num::NonZero,
    path::{Path, PathBuf},
    time::Duration,
};

/// Threads that are measured at most, unless told otherwise.
const MOST_THREADS: usize = 16;

/// Measures the shadow MMU on this machine, alone and beside two MMUs under one lock, checks its
/// targets, and writes the document and its plots.
#[derive(Debug, Parser)]
#[command(
    name = "mmu-bench",
    after_help = "Exit status: 0 measured; 1 a target is missed (with --check); 2 something was \
        wrong."
)]
pub struct Cli {
    /// Fewer and shorter measurements
    #[arg(long)]
    pub quick: bool,
    /// Write all figures to FILE
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub json: Option<PathBuf>,
    /// Write the document to FILE, and its plots to the folder img beside it [default:
    /// docs/mmu-benchmarks.md]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub md: Option<PathBuf>,
    /// Measure up to N threads [default: the cores there are, 16 at most]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZero<usize>>,
    /// Do not wait for idle cores: it is enough that this program gets all of them when it
    /// measures, as it does with real-time priority (chrt -f 1)
    #[arg(long)]
    pub busy: bool,
    /// Wait at most SECS for the cores, with each measurement
    #[arg(long, value_name = "SECS", default_value_t = 300)]
    pub patience: u64,
    /// Fail if a target is missed
    #[arg(long)]
    pub check: bool,
}

impl Cli {
    /// How to measure, on a machine with so many cores.
    ///
    /// # Errors
    /// More threads are wanted than there are cores.
    pub fn plan(&self, cores: usize) -> Result<Plan, String> {
        let threads = self.threads.map_or(cores.min(MOST_THREADS), NonZero::get);
        if threads > cores {
            return Err(format!(
                "--threads {threads}: there are {cores} cores, and threads that share one measure \
                 the scheduler; name {cores} at most"
            ));
        }
        let cores = if self.busy { Cores::Any } else { Cores::Idle };
        let full = Plan {
            threads,
            batches: 25,
            batch: Duration::from_millis(4),
            passes: 5,
            rounds: 50,
            cores,
            patience: Duration::from_secs(self.patience),
        };
        let batch = Duration::from_millis(1);
        let quick = Plan { batches: 7, batch, passes: 1, rounds: 30, ..full };
        Ok(if self.quick { quick } else { full })
    }

    /// Where the document goes.
    pub fn markdown(&self) -> PathBuf {
        self.md.clone().unwrap_or_else(|| root().join("docs/mmu-benchmarks.md"))
    }

    /// The command that measures the same.
    pub fn repeat_command(&self) -> String {
        let mut text = "cargo run --profile tool -p mmu-bench".to_owned();
        let mut words = Vec::new();
        if self.quick {
            words.push("--quick".to_owned());
        }
        if let Some(threads) = self.threads {
            words.push(format!("--threads {threads}"));
        }
        if self.busy {
            words.push("--busy".to_owned());
        }
        if !words.is_empty() {
            text += &format!(" -- {}", words.join(" "));
        }
        text
    }
}

/// The workspace.
fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn threads_need_cores() {
        let cli = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(cli("mmu-bench").plan(64).unwrap().threads, MOST_THREADS);
        assert_eq!(cli("mmu-bench").plan(3).unwrap().threads, 3);
        assert!(cli("mmu-bench --threads 4").plan(3).unwrap_err().contains("--threads 4"));
        assert!(Cli::try_parse_from(["mmu-bench", "--threads", "0"]).is_err());
    }

    #[test]
    fn the_command_shown_names_no_folders() {
        let cli = Cli::try_parse_from(["mmu-bench", "--quick", "--md", "/a/b.md"]).unwrap();
        assert_eq!(cli.repeat_command(), "cargo run --profile tool -p mmu-bench -- --quick");
    }
}
