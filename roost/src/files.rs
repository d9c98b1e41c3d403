//! Opens files named by the user, refusing whatever would hang or make no sense.
//! Input: anything a path can name.

use anyhow::{Context, Result, bail};
use std::{fs, path::Path};

/// Checks that `path` is a readable file with something in it; returns its length in bytes.
///
/// `what` names it in messages: "kernel", "initrd". Only regular files are opened, since opening
/// a pipe waits for a writer.
///
/// # Errors
/// One line: what is wrong with the file.
pub fn check(what: &str, path: &Path) -> Result<u64> {
    let shown = path.display();
    let meta = fs::metadata(path)
        .with_context(|| format!("cannot use {what} {shown}: check the path given"))?;
    if meta.is_dir() {
        bail!("{what} {shown} is a directory: name a file in it");
    }
    if !meta.is_file() {
        bail!("{what} {shown} is not a regular file: copy it to one first");
    }
    fs::File::open(path)
        .with_context(|| format!("cannot read {what} {shown}: check its permissions"))?;
    if meta.len() == 0 {
        bail!("{what} {shown} is empty: make or download it again");
    }
    Ok(meta.len())
}

/// The whole content of a file that [`check`] accepts.
///
/// # Errors
/// As [`check`].
pub fn read(what: &str, path: &Path) -> Result<Vec<u8>> {
    check(what, path)?;
    fs::read(path).with_context(|| format!("cannot read {what} {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_with_content_passes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"abc").unwrap();
        assert_eq!(check("kernel", file.path()).unwrap(), 3);
        assert_eq!(read("kernel", file.path()).unwrap(), b"abc");
    }

    #[test]
    fn everything_else_is_named() {
        let reason = |path: &Path| format!("{:#}", check("kernel", path).unwrap_err());
        let dir = tempfile::tempdir().unwrap();
        assert!(reason(dir.path()).contains("is a directory"));
        assert!(reason(&dir.path().join("none")).contains("No such file"));
        assert!(reason(Path::new("/dev/null")).contains("not a regular file"));
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(reason(empty.path()).contains("is empty"));
    }
}
