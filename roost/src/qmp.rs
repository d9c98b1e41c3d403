//! Learns from QEMU whether the machine reset itself or the user quit at the terminal; QEMU exits
//! with status 0 in both cases.
//!
//! QEMU's control protocol (QMP) runs over two named pipes. All we ever say is the greeting, so it
//! can wait in the pipe before QEMU starts, and QEMU's few lines wait for us after it has ended.

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
};

const GREETING: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n";

/// Both pipes, kept open so that nobody waits for the other end.
#[derive(Debug)]
pub struct EventPipes {
    base: PathBuf,
    _to_qemu: File,
    from_qemu: File,
}

impl EventPipes {
    /// Makes the pipes in `folder`.
    ///
    /// # Errors
    /// The folder does not take them.
    pub fn create(folder: &Path) -> Result<Self> {
        let base = folder.join("qmp");
        let mut to_qemu = pipe(&base.with_extension("in"))?;
        let from_qemu = pipe(&base.with_extension("out"))?;
        to_qemu.write_all(GREETING).context("cannot write to a pipe")?;
        Ok(Self { base, _to_qemu: to_qemu, from_qemu })
    }

    /// The path QEMU is given.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// After QEMU has ended: did the machine reset itself?
    #[must_use]
    pub fn machine_reset(mut self) -> bool {
        let mut said = Vec::new();
        // The pipe never ends while we hold it; reading stops with "would block".
        drop(self.from_qemu.read_to_end(&mut said));
        String::from_utf8_lossy(&said).lines().any(is_reset)
    }
}

fn is_reset(line: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(line)
        .is_ok_and(|event| event["event"] == "SHUTDOWN" && event["data"]["guest"] == true)
}

/// Opening a pipe for reading and writing never blocks on Linux.
fn pipe(path: &Path) -> Result<File> {
    let failed = || format!("cannot make the pipe {}", path.display());
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).with_context(failed)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty()).with_context(failed)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_told_from_a_quit() {
        let dir = tempfile::tempdir().unwrap();
        let pipes = EventPipes::create(dir.path()).unwrap();
        let mut qemu = File::options().write(true).open(dir.path().join("qmp.out")).unwrap();
        qemu.write_all(b"{\"QMP\": {}}\r\n{\"return\": {}}\r\n").unwrap();
        qemu.write_all(b"{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\r\n").unwrap();
        assert!(pipes.machine_reset());
    }

    #[test]
    fn silence_is_no_reset() {
        let dir = tempfile::tempdir().unwrap();
        let pipes = EventPipes::create(dir.path()).unwrap();
        assert_eq!(pipes.base(), dir.path().join("qmp"));
        assert!(!pipes.machine_reset());
    }

    #[test]
    fn an_end_from_outside_is_no_reset() {
        assert!(!is_reset(r#"{"event": "SHUTDOWN", "data": {"guest": false}}"#));
        assert!(!is_reset("{"));
    }
}
