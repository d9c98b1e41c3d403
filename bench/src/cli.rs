//! Defines the command line.

use clap::{Parser, ValueHint};
use std::path::{Path, PathBuf};

/// Words for the guest benchmark: batches of 2 ms, and as many as make a tick-free one likely.
const FULL: &str = "bench.target=2000 bench.batches=15";
/// The same for a first look.
const QUICK: &str = "bench.target=500 bench.batches=5";

/// Measures the guest benchmark natively and in a guest of Roost, under instruction counting, and
/// compares both with each other and with recorded peers.
#[derive(Debug, Parser)]
#[command(
    name = "bench",
    after_help = "Exit status: 0 measured; 1 a target is missed (with --check); 2 something was \
        wrong."
)]
pub struct Cli {
    /// Kernel to run natively and in the guest
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath,
        required_unless_present = "native_log")]
    pub kernel: Option<PathBuf>,
    /// Shorter and fewer batches
    #[arg(long)]
    pub quick: bool,
    /// Write all readings to FILE
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub json: Option<PathBuf>,
    /// Write the comparison to FILE [default: docs/benchmarks.md]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub md: Option<PathBuf>,
    /// Fail if a row misses its target
    #[arg(long)]
    pub check: bool,
    /// Measure without Roost
    #[arg(long)]
    pub native_only: bool,
    /// More words for the guest benchmark, e.g. bench.only=getppid
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub words: String,
    /// The guest benchmark, statically linked [default: target/x86_64-unknown-linux-gnu/tool/guest-bench]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub guest_bench: Option<PathBuf>,
    /// The kernel's msr module, for the row rdmsr_dev
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub msr_module: Option<PathBuf>,
    /// The roost command [default: target/tool/roost]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::ExecutablePath)]
    pub tool: Option<PathBuf>,
    /// QEMU
    #[arg(long, value_name = "FILE", default_value = "qemu-system-x86_64",
        value_hint = ValueHint::ExecutablePath)]
    pub qemu: PathBuf,
    /// QEMU's CPU model
    #[arg(long, value_name = "MODEL", default_value = "EPYC-v3")]
    pub cpu: String,
    /// Memory of machine and guest, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub memory: u32,
    /// Folder for logs and the initial ramdisk [default: target/bench]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub logs: Option<PathBuf>,
    /// Seconds that one run may take
    #[arg(long, value_name = "SECS", default_value_t = 1800)]
    pub timeout: u64,
    /// Take an earlier native run
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub native_log: Option<PathBuf>,
    /// Take an earlier run in a guest
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "native_log")]
    pub guest_log: Option<PathBuf>,
    /// Take an earlier run in a guest that counted
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "guest_log")]
    pub counted_log: Option<PathBuf>,
}

impl Cli {
    /// Where the document goes.
    pub fn markdown(&self) -> PathBuf {
        self.md.clone().unwrap_or_else(|| root().join("docs/benchmarks.md"))
    }

    /// Where logs go.
    pub fn logs(&self) -> PathBuf {
        self.logs.clone().unwrap_or_else(|| root().join("target/bench"))
    }

    /// The guest benchmark.
    pub fn guest_bench(&self) -> PathBuf {
        let place = "target/x86_64-unknown-linux-gnu/tool/guest-bench";
        self.guest_bench.clone().unwrap_or_else(|| root().join(place))
    }

    /// The `roost` command.
    pub fn tool(&self) -> PathBuf {
        self.tool.clone().unwrap_or_else(|| root().join("target/tool/roost"))
    }

    /// The command that gives the same readings, without this machine's folders.
    pub fn repeat_command(&self) -> String {
        let mut text = "cargo run --profile tool -p bench --".to_owned();
        let place = self.kernel.as_deref().or(self.native_log.as_deref());
        let option = if self.kernel.is_some() { "--kernel" } else { "--native-log" };
        if let Some(name) = place.and_then(Path::file_name) {
            text += &format!(" {option} {}", name.display());
        }
        if self.quick {
            text += " --quick";
        }
        if !self.words.is_empty() {
            text += &format!(" --words '{}'", self.words);
        }
        text
    }

    /// What the guest benchmark is told. Sleeping is left out: nothing moves time on under
    /// instruction counting while everybody sleeps.
    pub fn guest_words(&self) -> String {
        let speed = if self.quick { QUICK } else { FULL };
        let skip =
            if self.words.contains("bench.skip=") { "" } else { " bench.skip=nanosleep_excess" };
        format!("{speed}{skip} {}", self.words).trim_end().to_owned()
    }
}

/// The workspace.
fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
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
    fn the_command_shown_names_no_folders() {
        let cli = Cli::try_parse_from("bench --kernel /a/b/vmlinuz --quick".split(' ')).unwrap();
        assert_eq!(
            cli.repeat_command(),
            "cargo run --profile tool -p bench -- --kernel vmlinuz --quick"
        );
    }

    #[test]
    fn words_can_replace_what_is_skipped() {
        let words =
            |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.guest_words()).unwrap();
        assert!(words("bench --kernel k").ends_with("bench.skip=nanosleep_excess"));
        let own = words("bench --kernel k --quick --words bench.skip=noop");
        assert_eq!(own, "bench.target=500 bench.batches=5 bench.skip=noop");
        assert!(Cli::try_parse_from(["bench"]).is_err());
    }
}
