//! Finds GRUB's programs and makes a bootable medium of a folder.

use crate::{
    process::{self, Ended},
    qemu,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What GRUB's own program calls, and whose it is.
const HELPERS: &[(&str, &str)] = &[("xorriso", "xorriso"), ("mformat", "mtools")];
/// Where GRUB's parts for BIOS and UEFI are, and in which packages.
const PLATFORMS: &[(&str, &str)] = &[
    ("/usr/lib/grub/i386-pc/moddep.lst", "grub-pc-bin"),
    ("/usr/lib/grub/x86_64-efi/moddep.lst", "grub-efi-amd64-bin"),
];
/// GRUB's parts that the menu below needs, and those that its own start-up file asks for.
const MODULES: &str = "normal multiboot2 boot serial terminal echo sleep halt test all_video iso9660 fat \
    part_acorn part_amiga part_apple part_bsd part_dfly part_dvh part_gpt part_msdos part_plan part_sun \
    part_sunpc search search_fs_uuid search_fs_file configfile";

/// GRUB, complete.
#[derive(Debug)]
pub struct Grub {
    mkrescue: PathBuf,
}

impl Grub {
    /// Finds it.
    ///
    /// # Errors
    /// Says what to install.
    pub fn find() -> Result<Self> {
        let mkrescue = ["grub-mkrescue", "grub2-mkrescue"]
            .iter()
            .find_map(|name| qemu::on_path(OsStr::new(name)))
            .context("grub-mkrescue not found: install the package grub-common")?;
        for (program, package) in HELPERS {
            program_of(program, package)?;
        }
        for (file, package) in PLATFORMS {
            ensure!(
                Path::new(file).exists(),
                "GRUB's {file} not found: install the package {package}"
            );
        }
        Ok(Self { mkrescue })
    }

    /// Writes a medium with the files of `folder` to `output`, for BIOS and UEFI, for drives and disks.
    ///
    /// # Errors
    /// The program fails, or was ended together with this one.
    pub fn medium(&self, folder: &Path, output: &Path) -> Result<()> {
        let mut command = Command::new(&self.mkrescue);
        command.args(["--install-modules", MODULES, "--locales=", "--fonts=", "--themes="]);
        command.arg("-o").arg(output).arg(folder).args(["-volid", "ROOST"]);
        complete(command)
    }
}

/// The program `name`.
///
/// # Errors
/// Names the package that has it.
pub fn program_of(name: &str, package: &str) -> Result<PathBuf> {
    qemu::on_path(OsStr::new(name))
        .with_context(|| format!("{name} not found: install the package {package}"))
}

/// Runs a program to its end and shows what it says of failures only.
///
/// # Errors
/// It fails, or was ended together with this one.
pub fn complete(mut command: Command) -> Result<()> {
    let name = PathBuf::from(command.get_program());
    let name = name.file_name().unwrap_or_default().display();
    command.stdin(Stdio::null()).stdout(Stdio::null());
    match process::supervise(command, None, tells_of_failure)? {
        Ended::Exited(status) if status.success() => Ok(()),
        Ended::Exited(status) => bail!("{name} failed ({status}): the lines above say why"),
        Ended::Signalled(_) | Ended::TimedOut => bail!("{name} was ended"),
    }
}

fn tells_of_failure(line: &str) -> bool {
    ["error", "FAILURE", "FATAL", "No space", "qemu-img:"].iter().any(|word| line.contains(word))
}

/// What GRUB does: it loads L1 and its module, or says why not, on the serial port too. `need` is the
/// memory of the machine in MiB.
#[must_use]
pub fn menu(need: u64) -> String {
    format!(
        "\
# Written by `roost image`.
if [ \"$grub_platform\" = efi ]; then
    insmod all_video
fi
if multiboot2 /boot/roost/l1; then
    if module2 /boot/roost/bundle; then
        boot
    fi
fi
serial --unit=0 --speed=115200
terminal_output --append serial
echo \"roost: GRUB cannot load L1: the machine needs {need} MiB of memory\"
sleep --interruptible 3600
halt
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let error = program_of("no-such-program", "its-package").unwrap_err().to_string();
        assert_eq!(error, "no-such-program not found: install the package its-package");
    }

    #[test]
    fn failures_are_told() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        let error = complete(command).unwrap_err().to_string();
        assert!(error.starts_with("sh failed (exit status: 3)"), "{error}");
        assert!(tells_of_failure("xorriso : FAILURE : Cannot open file"));
        assert!(!tells_of_failure("xorriso : UPDATE : Writing: 32s"));
    }
}
