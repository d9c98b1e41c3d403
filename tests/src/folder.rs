//! Gives each test a folder of its own, in which the tool runs.

use crate::{
    built::{self, Kernel},
    outcome::Said,
    run::Run,
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

/// How long it may take to pack a ramdisk, or to refuse a run.
const SHORT: Duration = Duration::from_secs(60);

/// A temporary folder: the tool's working folder and its place for temporary files.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    /// An empty folder.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("roost-tests-").tempdir().expect("temporary folder"))
    }

    /// A path in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file in the folder.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// The names of all files, in order.
    ///
    /// # Panics
    /// The folder cannot be read.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let entries = self.0.path().read_dir().expect("temporary folder");
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// The tool in this folder.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.program(built::tool().as_os_str());
        command.args(arguments);
        command
    }

    /// A program in this folder.
    pub(crate) fn program(&self, program: &OsStr) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.path()).env("TMPDIR", self.0.path());
        command
    }

    /// The tool's answer to arguments that start no machine.
    ///
    /// # Panics
    /// It does not end in time.
    #[must_use]
    pub fn roost(&self, arguments: &[&str]) -> Said {
        Said::by(self.command(arguments), SHORT)
    }

    /// A run of `kernel`, to be completed.
    #[must_use]
    pub fn run(&self, kernel: &Path) -> Run<'_> {
        Run::new(self, kernel)
    }

    /// A run of the guests that `config` describes, to be completed.
    #[must_use]
    pub fn run_config(&self, config: &Path) -> Run<'_> {
        Run::of_config(self, config)
    }

    /// Debian, which `scripts/debian.sh` starts from a disk in this folder, to be completed.
    #[must_use]
    pub fn debian(&self) -> Run<'_> {
        Run::of_debian(self)
    }

    /// A ramdisk with a busybox that gives a shell.
    #[must_use]
    pub fn busybox(&self) -> PathBuf {
        self.ramdisk("busybox.cpio", &["--busybox"])
    }

    /// A ramdisk with the program that checks a guest.
    #[must_use]
    pub fn guest_checks(&self) -> PathBuf {
        let program = built::guest_checks();
        self.ramdisk("checks.cpio", &["--init", &program.to_string_lossy()])
    }

    /// The same with what lets it read MSRs under `kernel`.
    #[must_use]
    pub fn guest_checks_with_msrs(&self, kernel: Kernel) -> PathBuf {
        let Some(msr) = self.module(kernel, "arch/x86/kernel/msr") else {
            return self.guest_checks();
        };
        let program = built::guest_checks();
        let add = format!("{msr}=/{msr}");
        self.ramdisk("msrs.cpio", &["--init", &program.to_string_lossy(), "--add", &add])
    }

    /// A ramdisk with a busybox that gives a shell and, in its root, the module that `kernel` has from
    /// `place`; `words` are more for `roost initrd`.
    ///
    /// # Panics
    /// The kernel has no such module.
    #[must_use]
    pub fn busybox_with(&self, kernel: Kernel, place: &str, words: &[&str]) -> PathBuf {
        self.busybox_with_all(kernel, &[place], words)
    }

    /// The same with several modules.
    ///
    /// # Panics
    /// A kernel has one built in, or the tool fails.
    #[must_use]
    pub fn busybox_with_all(&self, kernel: Kernel, places: &[&str], words: &[&str]) -> PathBuf {
        let add = |place: &&str| {
            let module = self.module(kernel, place);
            let module = module.unwrap_or_else(|| panic!("{place} is built in"));
            format!("{module}=/{module}")
        };
        let added: Vec<_> = places.iter().map(add).collect();
        let added = added.iter().flat_map(|add| ["--add", add]);
        let all: Vec<_> =
            ["--busybox"].into_iter().chain(added).chain(words.iter().copied()).collect();
        self.ramdisk(&format!("{kernel:?}.cpio"), &all)
    }

    /// Unpacks a module of `kernel`'s into the folder: its name there; `None` if it is built in.
    fn module(&self, kernel: Kernel, place: &str) -> Option<String> {
        let packed = kernel.module(place)?;
        let unpacker = match packed.extension().and_then(|end| end.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            _ => "cat",
        };
        let flags: &[&str] = if unpacker == "cat" { &[] } else { &["-dc"] };
        let name = format!("{}.ko", place.rsplit('/').next().unwrap_or(place));
        let module = File::create(self.path(&name)).expect("temporary file");
        let unpacked = Command::new(unpacker).args(flags).arg(&packed).stdout(module).status();
        assert!(unpacked.is_ok_and(|status| status.success()), "{unpacker} {}", packed.display());
        Some(name)
    }

    fn ramdisk(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let said = self.roost(&[&["initrd", "--output", name], arguments].concat());
        assert_eq!(said.status, 0, "{said:?}");
        self.path(name)
    }
}
