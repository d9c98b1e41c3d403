//! Has the tool start QEMU with other words than it meant to.

use crate::{built, folder::Folder};
use std::{fs::Permissions, os::unix::fs::PermissionsExt, path::PathBuf};

/// A program for `--qemu` that changes each argument by the commands of `sed`.
///
/// # Panics
/// It cannot be written.
#[must_use]
pub fn changed(folder: &Folder, sed: &str) -> PathBuf {
    changed_behind(folder, "", sed)
}

/// The same on a machine whose disks are units of one SCSI controller.
///
/// # Panics
/// It cannot be written.
#[must_use]
pub fn with_scsi(folder: &Folder, sed: &str) -> PathBuf {
    let disks = "s/^virtio-blk-pci,disable-legacy=on,\\(.*\\),num-queues=1,/scsi-hd,\\1,/";
    changed_behind(folder, "-device virtio-scsi-pci", &format!("{disks};{sed}"))
}

/// QEMU gets `words` first, then what `sed` makes of the arguments.
fn changed_behind(folder: &Folder, words: &str, sed: &str) -> PathBuf {
    let script = format!(
        "#!/bin/sh\nfor word do\n    shift\n    \
         set -- \"$@\" \"$(printf '%s\\n' \"$word\" | sed '{sed}')\"\ndone\n\
         exec qemu-system-x86_64 {words} \"$@\"\n"
    );
    program(folder, &script)
}

/// A program for `--qemu` that takes `words` as well, as the shell reads them, when it starts L1.
///
/// # Panics
/// It cannot be written.
#[must_use]
pub fn with_words(folder: &Folder, words: &str) -> PathBuf {
    // The tool has it look at disks too, without L1.
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *-kernel*) set -- \"$@\" {words} ;; esac\n\
         exec qemu-system-x86_64 \"$@\"\n"
    );
    program(folder, &script)
}

/// A program for `--qemu` that has L1 started by firmware with a mailbox for processors; `words` are for
/// the firmware.
///
/// # Panics
/// It cannot be written.
#[must_use]
pub fn with_mailbox(folder: &Folder, words: &str) -> PathBuf {
    let text = |path: PathBuf| path.to_str().expect("a plain path").to_owned();
    let firmware = text(built::mailbox_firmware());
    let script = include_str!("with_mailbox.sh")
        .replace("=FIRMWARE", &format!("='{firmware}'"))
        .replace("=BOTH", &format!("='{}'", text(folder.path("both"))))
        .replace("WORDS", words);
    program(folder, &script)
}

fn program(folder: &Folder, script: &str) -> PathBuf {
    let path = folder.file("qemu.sh", script.as_bytes());
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it is ours");
    path
}
