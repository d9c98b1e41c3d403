//! Has the tool start QEMU with other words than it meant to.

use crate::folder::Folder;
use std::{fs::Permissions, os::unix::fs::PermissionsExt, path::PathBuf};

/// A program for `--qemu` that changes each argument by the commands of `sed`.
///
/// # Panics
/// It cannot be written.
#[must_use]
pub fn changed(folder: &Folder, sed: &str) -> PathBuf {
    let script = format!(
        "#!/bin/sh\nfor word do\n    shift\n    \
         set -- \"$@\" \"$(printf '%s\\n' \"$word\" | sed '{sed}')\"\ndone\n\
         exec qemu-system-x86_64 \"$@\"\n"
    );
    let path = folder.file("qemu.sh", script.as_bytes());
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it is ours");
    path
}
