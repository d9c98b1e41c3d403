//! Holds a run's files in a temporary folder, of which only a useful log outlives the run.

use crate::{cli::StatsTo, dump, plan::Plan};
use anyhow::{Context, Result, ensure};
use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Where a run keeps its files.
#[derive(Debug)]
pub struct Folder {
    temporary: TempDir,
    named_log: Option<PathBuf>,
}

impl Folder {
    /// Makes the folder and checks that the files the user named can be written.
    ///
    /// # Errors
    /// Says which place cannot be written.
    pub fn create(plan: &Plan, named_log: Option<&Path>) -> Result<Self> {
        if let Some(StatsTo::Json(file)) = &plan.machine.stats {
            check_writable("--stats=json", file)?;
        }
        if let Some(log) = named_log {
            check_writable("--l1-log", log)?;
        }
        for guest in &plan.guests {
            if let Some(file) = &guest.core {
                let setting = plan.origin.setting("core");
                check_writable(&setting, file)
                    .and_then(|()| dump::temporary(file).map(drop))
                    .map_err(|why| plan.origin.about(guest, format!("{why:#}")))?;
            }
        }
        let temporary = tempfile::Builder::new()
            .prefix("roost-")
            .tempdir()
            .context("cannot make a temporary folder: check TMPDIR")?;
        Ok(Self { temporary, named_log: named_log.map(Into::into) })
    }

    /// For files that nobody needs later.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// The boot module.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.path().join("bundle")
    }

    /// L1's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.named_log.clone().unwrap_or_else(|| self.path().join("l1.log"))
    }

    /// Leaves the log behind, alone, and returns its path.
    #[must_use]
    pub fn keep_log(self) -> PathBuf {
        let log = self.log();
        if self.named_log.is_none() {
            // What cannot be removed does no harm beside the log.
            drop(fs::remove_file(self.bundle()));
            drop(self.temporary.keep());
        }
        log
    }
}

/// Opening for appending changes nothing in a file that exists. One that did not is gone again
/// afterwards: a run that is refused later leaves nothing behind.
fn check_writable(option: &str, path: &Path) -> Result<()> {
    let shown = path.display();
    let existed = match fs::metadata(path) {
        Ok(meta) => {
            ensure!(meta.is_file(), "{option} {shown} is not a regular file: name another");
            true
        }
        Err(_) => false,
    };
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("{option} {shown} cannot be written: name another file"))?;
    if !existed {
        fs::remove_file(path).with_context(|| format!("{option} {shown} cannot be replaced"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(named_log: Option<PathBuf>) -> Folder {
        Folder { temporary: tempfile::tempdir().unwrap(), named_log }
    }

    #[test]
    fn a_kept_log_stays_alone() {
        let folder = folder(None);
        fs::write(folder.bundle(), b"big").unwrap();
        fs::write(folder.log(), b"words").unwrap();
        let log = folder.keep_log();
        assert_eq!(fs::read(&log).unwrap(), b"words");
        let left = log.parent().unwrap();
        assert_eq!(fs::read_dir(left).unwrap().count(), 1);
        fs::remove_dir_all(left).unwrap();
    }

    #[test]
    fn a_named_log_is_where_the_user_said() {
        let folder = folder(Some("/x/log".into()));
        let temporary = folder.path().to_owned();
        assert_eq!(folder.keep_log(), Path::new("/x/log"));
        assert!(!temporary.exists());
    }

    #[test]
    fn a_place_that_can_be_written_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        fs::write(&old, b"words").unwrap();
        check_writable("--l1-log", &old).unwrap();
        check_writable("--l1-log", &new).unwrap();
        assert_eq!(fs::read(old).unwrap(), b"words");
        assert!(!new.exists());
    }

    #[test]
    fn places_that_cannot_be_written_are_named() {
        let reason =
            |path| format!("{:#}", check_writable("--l1-log", Path::new(path)).unwrap_err());
        assert!(reason("/dev/null").contains("not a regular file"));
        assert!(reason("/nowhere/log").contains("cannot be written"));
    }
}
