//! Finds the images that `make` builds: L1 and the shim.

use crate::{
    elf::{Address, Elf, Program},
    files,
};
use anyhow::{Context, Result, bail};
use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Environment variable that names the folder of the images.
pub const FOLDER_VARIABLE: &str = "ROOST_IMAGES";

/// The folder of the images; it may lack them.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
}

impl Images {
    /// Where this machine keeps them: `$ROOST_IMAGES`, or `target/roost` of the workspace that
    /// the tool was built in or is called in.
    #[must_use]
    pub fn find() -> Self {
        let exe = env::current_exe().unwrap_or_default();
        let cwd = env::current_dir().unwrap_or_default();
        let candidates = candidates(env::var_os(FOLDER_VARIABLE), &exe, &cwd);
        let found = candidates.iter().find(|folder| folder.join("l1").exists());
        Self { folder: found.or(candidates.last()).cloned().unwrap_or_default() }
    }

    /// The L1 image, for QEMU to load.
    ///
    /// # Errors
    /// Says where it was looked for, or that it is not an x86-64 program.
    pub fn l1(&self) -> Result<PathBuf> {
        let (path, data) = self.read("l1", "L1")?;
        Elf::parse(&data).with_context(|| damaged(&path))?;
        Ok(path)
    }

    /// The shim, cut into pieces.
    ///
    /// # Errors
    /// Says where it was looked for, or why it cannot be used.
    pub fn shim(&self) -> Result<Program> {
        let (path, data) = self.read("shim", "shim")?;
        Elf::parse(&data)
            .and_then(|elf| elf.program(Address::Virtual))
            .with_context(|| damaged(&path))
    }

    fn read(&self, name: &str, title: &str) -> Result<(PathBuf, Vec<u8>)> {
        let path = self.folder.join(name);
        if !path.exists() {
            bail!("{title} image not found at {}: run `make` first", path.display());
        }
        let data = files::read(&format!("{title} image"), &path)?;
        Ok((path, data))
    }
}

fn damaged(path: &Path) -> String {
    format!("{} cannot be used: run `make` again", path.display())
}

/// Folders to look in, the likeliest place for a fresh build last.
fn candidates(named: Option<OsString>, exe: &Path, cwd: &Path) -> Vec<PathBuf> {
    if let Some(folder) = named {
        return vec![folder.into()];
    }
    let beside_tool = exe.ancestors().skip(2).map(|target| target.join("roost"));
    let in_workspace = cwd.ancestors().map(|root| root.join("target/roost"));
    let workspace = cwd.ancestors().filter(|root| root.join("Cargo.lock").exists());
    beside_tool
        .chain(in_workspace)
        .chain([cwd.join("target/roost")])
        .chain(workspace.map(|root| root.join("target/roost")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_decides_alone() {
        let found = candidates(Some("/x".into()), Path::new("/t/tool/roost"), Path::new("/w"));
        assert_eq!(found, [Path::new("/x")]);
    }

    #[test]
    fn the_tools_own_target_folder_comes_first() {
        let found = candidates(None, Path::new("/t/tool/roost"), Path::new("/w/sub"));
        assert_eq!(found[0], Path::new("/t/roost"));
        assert!(found.contains(&PathBuf::from("/w/target/roost")));
        assert_eq!(found.last(), Some(&PathBuf::from("/w/sub/target/roost")));
    }

    #[test]
    fn absent_images_say_what_to_do() {
        let images = Images { folder: "/nowhere".into() };
        let reason = images.l1().unwrap_err().to_string();
        assert_eq!(reason, "L1 image not found at /nowhere/l1: run `make` first");
        let reason = images.shim().unwrap_err().to_string();
        assert_eq!(reason, "shim image not found at /nowhere/shim: run `make` first");
    }

    #[test]
    fn damaged_images_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("l1"), b"junk").unwrap();
        let images = Images { folder: dir.path().into() };
        assert!(format!("{:#}", images.l1().unwrap_err()).contains("run `make` again"));
    }
}
