//! Runs a machine with `roost run`, to its end or as a session.

use crate::{
    bridge::Bridge,
    built,
    folder::Folder,
    outcome::{Ended, Said},
    session::{Session, Wires},
    slot::Slot,
    stats::Stats,
};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Seconds that a run may take unless a test says otherwise.
const LIMIT: u64 = 120;
/// Time for the tool to see to its own limit.
const GRACE: Duration = Duration::from_secs(20);
/// Names in the run's folder.
pub(crate) const LOG: &str = "l1.log";
const STATS: &str = "stats.json";

/// A run to be started. It keeps L1's log and statistics, and has a time limit.
#[derive(Debug)]
pub struct Run<'a> {
    folder: &'a Folder,
    /// What is called, with its first words.
    program: Vec<OsString>,
    /// The folder as the program has to be told of it.
    place: PathBuf,
    arguments: Vec<OsString>,
    /// Words for the kernel, if the options name one.
    append: Option<String>,
    limit: u64,
    images: Option<PathBuf>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(folder: &'a Folder, kernel: &Path) -> Self {
        let run = Self { append: Some(String::new()), ..Self::machine(folder) };
        run.option("--kernel", kernel)
    }

    pub(crate) fn of_config(folder: &'a Folder, config: &Path) -> Self {
        Self::machine(folder).option("--config", config)
    }

    /// Debian on the disk that is in the folder, started by the script.
    pub(crate) fn of_debian(folder: &'a Folder) -> Self {
        let program =
            vec![built::debian_script().into(), "--folder".into(), folder.path("").into()];
        // The script works in a folder of its own.
        Self { program, place: folder.path(""), ..Self::machine(folder) }
    }

    fn machine(folder: &'a Folder) -> Self {
        let program = vec![built::tool().into(), "run".into()];
        let run = Self {
            folder,
            program,
            place: PathBuf::new(),
            arguments: Vec::new(),
            append: None,
            limit: LIMIT,
            images: None,
        };
        // The emulator shows what any CPU model has, on any machine.
        run.option("--accel", "tcg")
    }

    /// Sets the CPUs of the machine.
    #[must_use]
    pub fn cpus(self, count: u32) -> Self {
        self.option("--cpus", count.to_string())
    }

    /// Sets the vCPUs of the guest.
    #[must_use]
    pub fn vcpus(self, count: u32) -> Self {
        self.option("--vcpus", count.to_string())
    }

    /// Adds an option with its value.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.arguments.extend([name.into(), value.into()]);
        self
    }

    /// Adds an option that has no value.
    #[must_use]
    pub fn flag(mut self, name: &str) -> Self {
        self.arguments.push(name.into());
        self
    }

    /// Names the ramdisk.
    #[must_use]
    pub fn initrd(self, file: &Path) -> Self {
        self.option("--initrd", file)
    }

    /// Sets the guest's memory.
    #[must_use]
    pub fn memory(self, size: &str) -> Self {
        self.option("--memory", size)
    }

    /// Adds words to the kernel's command line.
    #[must_use]
    pub fn append(mut self, words: &str) -> Self {
        let before = self.append.unwrap_or_default();
        self.append = Some(format!("{before} {words}").trim_start().to_owned());
        self
    }

    /// Takes L1 and the shim from another folder.
    #[must_use]
    pub fn images(mut self, folder: PathBuf) -> Self {
        self.images = Some(folder);
        self
    }

    /// Runs it where the bridge is.
    #[must_use]
    pub fn beside(mut self, bridge: &Bridge) -> Self {
        let enter = bridge.enter(self.folder).into_iter().map(OsString::from);
        self.program = enter.chain(self.program).collect();
        self
    }

    /// Sets the time limit.
    #[must_use]
    pub const fn limit(mut self, seconds: u64) -> Self {
        self.limit = seconds;
        self
    }

    /// Runs to the end.
    ///
    /// # Panics
    /// The tool does not end in time.
    #[must_use]
    pub fn to_end(self) -> Ended {
        let _slot = Slot::take();
        let said = Said::by(self.command(), Duration::from_secs(self.limit) + GRACE);
        ended(self.folder, said)
    }

    /// Starts a session with the guest's console on pipes.
    ///
    /// # Panics
    /// The tool cannot be started.
    #[must_use]
    pub fn piped(self) -> Session<'a> {
        self.session(Wires::Pipes)
    }

    /// Starts a session at a terminal.
    ///
    /// # Panics
    /// The tool cannot be started, or there is no terminal to be had.
    #[must_use]
    pub fn at_a_terminal(self) -> Session<'a> {
        self.session(Wires::Terminal)
    }

    fn session(self, wires: Wires) -> Session<'a> {
        let slot = Slot::take();
        Session::start(self.folder, self.command(), wires, slot)
    }

    fn command(&self) -> Command {
        for name in [LOG, STATS] {
            // Left by an earlier run, or not there.
            let _ = fs::remove_file(self.folder.path(name));
        }
        let mut command = self.folder.program(&self.program[0]);
        command.args(&self.program[1..]);
        command.envs(self.images.as_ref().map(|folder| ("ROOST_IMAGES", folder)));
        command.args(&self.arguments).arg("--l1-log").arg(self.place.join(LOG));
        command.args(self.append.iter().flat_map(|words| ["--append", words]));
        command.arg(format!("--stats=json:{}", self.place.join(STATS).display()));
        command.arg(format!("--timeout={}", self.limit));
        command
    }
}

/// Adds what a run left in its folder.
pub(crate) fn ended(folder: &Folder, said: Said) -> Ended {
    let text = |name| fs::read_to_string(folder.path(name)).unwrap_or_default();
    let json = text(STATS);
    let guests = if json.is_empty() { Vec::new() } else { Stats::all(&json) };
    let stats = guests.first().filter(|_| guests.len() == 1).cloned();
    Ended { said, log: text(LOG), stats, guests }
}
