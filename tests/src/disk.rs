//! Makes file systems in files, and looks at what guests have left in them.

use crate::{built::Kernel, folder::Folder, session::Session};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The driver of stock kernels for disks, a module.
pub const DRIVER: &str = "drivers/block/xen-blkfront";

/// Runs a program of the host's; distributions keep some where users do not look.
///
/// # Panics
/// It is not there, or fails.
pub fn host(program: &str, arguments: &[&str]) -> Output {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output()
        .unwrap_or_else(|error| {
            panic!("{program} (scripts/setup.sh --tests installs it): {error}")
        });
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output
}

/// An ext4 file system of `size` bytes in a file of the folder.
///
/// # Panics
/// It cannot be, or is not so.
#[must_use]
pub fn file_system(folder: &Folder, name: &str, size: u64) -> PathBuf {
    let path = folder.path(name);
    File::create(&path).and_then(|file| file.set_len(size)).expect("temporary file");
    host("mkfs.ext4", &["-q", "-F", text(&path)]);
    path
}

/// The name of a file, for programs.
///
/// # Panics
/// It is no text.
#[must_use]
pub fn text(path: &Path) -> &str {
    path.to_str().expect("names of temporary files are text")
}

/// Asks `debugfs` about the file system in `image`.
///
/// # Panics
/// It cannot be, or is not so.
#[must_use]
pub fn debugfs(image: &Path, command: &str) -> String {
    String::from_utf8(host("debugfs", &["-w", "-R", command, text(image)]).stdout).expect("text")
}

/// The file system is whole, its journal empty.
///
/// # Panics
/// It cannot be, or is not so.
pub fn check(image: &Path) {
    let said = host("e2fsck", &["-f", "-n", text(image)]);
    let said = String::from_utf8_lossy(&said.stdout);
    assert!(!said.contains("recover"), "{said}");
}

/// A ramdisk with busybox and the kernel's driver for disks, which is a module.
///
/// # Panics
/// It cannot be, or is not so.
#[must_use]
pub fn ramdisk(folder: &Folder, kernel: Kernel) -> PathBuf {
    folder.busybox_with(kernel, DRIVER, &[])
}

/// Loads the driver of [`ramdisk`] and waits for the first disk.
pub fn with_disk_module(guest: &mut Session<'_>) {
    guest.succeed("insmod /xen-blkfront.ko");
    guest.succeed("while ! [ -b /dev/xvda ]; do sleep 0.1; done");
}
