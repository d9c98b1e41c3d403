//! Holds what a run of the tool left to be judged.

use crate::stats::{RootCheck, Stats};
use std::{
    fs::File,
    io::{Read, Seek},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};
use wait_timeout::ChildExt;

/// How the tool ended and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Runs `command`, without input, to its end.
    ///
    /// # Panics
    /// It cannot be started or takes longer than `limit`.
    #[must_use]
    pub fn by(mut command: Command, limit: Duration) -> Self {
        let (out, err) = (scratch(), scratch());
        command.stdin(Stdio::null()).stdout(handle(&out)).stderr(handle(&err));
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let status = wait(&mut child, limit).unwrap_or_else(|| {
            // It may have ended just now.
            let _ = child.kill();
            panic!("{command:?} did not end within {limit:?}: {}", content(&err))
        });
        Self { status: code(status), out: content(&out), err: content(&err) }
    }

    /// Judges that the tool refused with `status`, nothing on standard output, and one line that
    /// holds all of `words`.
    ///
    /// # Panics
    /// It did something else.
    pub fn refuses(&self, status: i32, words: &[&str]) {
        assert_eq!((self.status, self.out.as_str()), (status, ""), "{self:?}");
        let line = self.err.strip_suffix('\n').unwrap_or_default();
        assert!(line.starts_with("roost: ") && !line.contains('\n'), "not one line: {self:?}");
        for word in words {
            assert!(line.contains(word), "`{word}` is not in: {line}");
        }
    }
}

/// How a run of a machine ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// What the tool said; its standard output is the guest's console.
    pub said: Said,
    /// L1's log.
    pub log: String,
    /// Statistics, if L1 gave any.
    pub stats: Option<Stats>,
    /// The same where there are several guests.
    pub guests: Vec<Stats>,
}

impl Ended {
    /// Judges that L1 did nothing wrong: it did not fail, and its check of the shadow roots, which
    /// it makes when a guest ends, saw roots and entries and found no violation.
    ///
    /// # Panics
    /// Something is not so.
    pub fn assert_l1_is_sound(&self) {
        assert!(!self.log.contains("L1 failed"), "{}", self.log);
        let checks = RootCheck::all(&self.log);
        assert!(!checks.is_empty(), "no root was checked: {}", self.log);
        for check in checks {
            assert_eq!(check.violations, 0, "{}", self.log);
            assert!(check.roots > 0 && check.guest_leaves > 0 && check.window_leaves > 0);
        }
    }

    /// Judges that the guest powered off and L1 did nothing wrong.
    ///
    /// # Panics
    /// Something is not so.
    pub fn assert_powered_off(&self) {
        assert_eq!((self.said.status, self.said.err.as_str()), (0, ""), "{}", self.said.out);
        self.assert_l1_is_sound();
    }

    /// Judges that the guest died with `reason`, that the tool says so with all registers, and
    /// that L1 did nothing wrong.
    ///
    /// # Panics
    /// Something is not so.
    pub fn assert_died(&self, reason: &str) {
        let err = &self.said.err;
        assert_eq!(self.said.status, 3, "{err}{}", self.said.out);
        let first = err.lines().next().unwrap_or_default();
        assert!(first.starts_with("roost: guest '"), "{err}");
        assert!(first.ends_with(&format!("' died: {reason}")), "`{reason}` is not in: {first}");
        for register in ["mode ", "rip 0x", "rsp 0x", "cr3 ", "rax 0x", "r15 0x"] {
            assert!(err.contains(register), "no {register}in: {err}");
        }
        assert!(err.contains("\nroost: the guest died\n"), "{err}");
        self.assert_l1_is_sound();
    }
}

/// The end of `child`, if it comes within `limit`.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    child.wait_timeout(limit).expect("cannot wait for the tool")
}

/// The exit status; a signal that killed the tool is a failure of the test.
pub(crate) fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| panic!("the tool was killed by {:?}", status.signal()))
}

/// A file without a name: a full pipe would stop the tool.
pub(crate) fn scratch() -> File {
    tempfile::tempfile().expect("temporary file")
}

pub(crate) fn handle(file: &File) -> Stdio {
    file.try_clone().expect("temporary file").into()
}

pub(crate) fn content(mut file: &File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("temporary file");
    String::from_utf8_lossy(&bytes).into_owned()
}
