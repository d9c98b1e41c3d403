//! `roost image`: writes what a machine boots L1 and its guests from.

use crate::{
    bundle::Contents,
    cli::ImageArgs,
    disk::{self, Embedded},
    grub::{self, Grub},
    images::Images,
    memory::{MIB, l1_need},
    network, partition,
    plan::Plan,
    preflight, run,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::{NamedTempFile, TempDir};

/// What firmware keeps of a machine's memory, at most.
const FIRMWARE: u64 = 32 * MIB;

/// What can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// For CD drives; the same bytes make a disk.
    Medium,
    /// QEMU's own for disks.
    Qcow2,
}

impl Format {
    fn of(output: &Path) -> Result<Self> {
        match output.extension().and_then(|ending| ending.to_str()) {
            Some("iso" | "raw") => Ok(Self::Medium),
            Some("qcow2") => Ok(Self::Qcow2),
            _ => bail!(
                "--output {} has an unknown ending: use .iso, .raw or .qcow2",
                output.display()
            ),
        }
    }
}

/// Writes the image and prints the memory that its machine needs, in MiB.
///
/// # Errors
/// Something is wrong with the guests, a program is missing, or the file cannot be written.
pub fn write(args: &ImageArgs) -> Result<u8> {
    let format = Format::of(&args.output)?;
    let plan = Plan::of(&args.as_run())?;
    if let Some(guest) = plan.guests.iter().find(|guest| guest.core.is_some()) {
        let why = "`core` cannot be used with an image: nobody is there to write the file";
        return Err(plan.origin.about(guest, why));
    }
    let files = preflight::check_for_elsewhere(&plan)?;
    let (embedded, disks) = disk::check_for_image(&plan)?;
    if let Some(disk) = embedded.first() {
        let (path, output) = (disk.path.display(), args.output.display());
        ensure!(
            may_hold_disks(&args.output),
            "disk {path} cannot be on {output}, for a CD is not written: use .raw or .qcow2"
        );
    }
    let images = Images::find();
    let l1 = images.l1()?;
    network::check_for_elsewhere(&plan, "an image")?;
    let contents = run::contents(&plan, files, disks, &images)?;
    // Nobody knows when it is started, and whoever looks at the console is at a terminal.
    let contents = Contents { wall_seconds: 0, console: plan.console(true), ..contents };
    let grub = Grub::find()?;
    let converts = format == Format::Qcow2
        || embedded.iter().any(|disk| disk.format == disk::machine::Format::Qcow2);
    let converter = converts.then(|| grub::program_of("qemu-img", "qemu-utils")).transpose()?;
    let output = Output::beside(&args.output)?;

    let folder =
        TempDir::with_prefix("roost-").context("cannot make a temporary folder: check TMPDIR")?;
    let need = fill(folder.path(), &contents, &l1, plan.guest_memory())?;
    match (format, converter) {
        (Format::Qcow2, Some(program)) => {
            let medium = Output::beside(output.path())?;
            grub.medium(folder.path(), medium.path())?;
            embed(&embedded, Some(&program), medium.path())?;
            convert(&program, ("raw", medium.path()), ("qcow2", output.path()))?;
        }
        (_, converter) => {
            grub.medium(folder.path(), output.path())?;
            embed(&embedded, converter.as_deref(), output.path())?;
        }
    }
    output.keep()?;
    println!("{need}");
    Ok(0)
}

/// Puts the medium's files into `folder`; the memory that the machine needs, in MiB.
fn fill(folder: &Path, contents: &Contents, l1: &Path, guests: u64) -> Result<u64> {
    let [roost, menu] = ["boot/roost", "boot/grub"].map(|name| folder.join(name));
    let unwritable = "cannot write to the temporary folder: check TMPDIR";
    fs::create_dir_all(&roost).and_then(|()| fs::create_dir_all(&menu)).context(unwritable)?;
    fs::copy(l1, roost.join("l1")).context(unwritable)?;
    let bundle = run::write_bundle(contents, &roost.join("bundle"))?;
    let need = (guests + l1_need(guests, bundle) + FIRMWARE).div_ceil(MIB);
    fs::write(menu.join("grub.cfg"), grub::menu(need)).context(unwritable)?;
    Ok(need)
}

/// Makes partitions of `disks` behind what is on `medium`.
fn embed(disks: &[Embedded], converter: Option<&Path>, medium: &Path) -> Result<()> {
    for disk in disks {
        let converted = match (disk.format, converter) {
            (disk::machine::Format::Qcow2, Some(program)) => {
                let file = Output::beside(medium)?;
                convert(program, ("qcow2", &disk.path), ("raw", file.path()))?;
                Some(file)
            }
            _ => None,
        };
        let raw = converted.as_ref().map_or(&*disk.path, Output::path);
        partition::append(medium, raw, disk)?;
    }
    Ok(())
}

fn convert(
    program: &Path,
    (from_format, from): (&str, &Path),
    (to_format, to): (&str, &Path),
) -> Result<()> {
    let mut command = Command::new(program);
    command.args(["convert", "-f", from_format, "-O", to_format]).arg(from).arg(to);
    grub::complete(command)
}

/// Whether what is written there can be written by guests, too.
fn may_hold_disks(output: &Path) -> bool {
    output.extension().is_none_or(|ending| ending != "iso")
}

/// A file that has another name until it is complete, and does not stay if it never is.
#[derive(Debug)]
struct Output {
    file: NamedTempFile,
    name: PathBuf,
}

impl Output {
    fn beside(name: &Path) -> Result<Self> {
        ensure!(!name.is_dir(), "--output {} is a folder: name a file", name.display());
        let folder = match name.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .prefix(".roost-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .with_context(|| format!("--output {} cannot be written", name.display()))?;
        Ok(Self { file, name: name.into() })
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    fn keep(self) -> Result<()> {
        let failed = || format!("--output {} cannot be written", self.name.display());
        self.file.persist(&self.name).map(drop).with_context(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_tells_the_format() {
        assert_eq!(Format::of(Path::new("a/b.iso")).unwrap(), Format::Medium);
        assert_eq!(Format::of(Path::new("b.raw")).unwrap(), Format::Medium);
        assert_eq!(Format::of(Path::new("b.qcow2")).unwrap(), Format::Qcow2);
        let error = Format::of(Path::new("b.vmdk")).unwrap_err().to_string();
        assert!(error.contains("b.vmdk") && error.contains(".qcow2"), "{error}");
    }

    #[test]
    fn an_incomplete_file_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("a.iso");
        fs::write(&name, "old").unwrap();
        let output = Output::beside(&name).unwrap();
        fs::write(output.path(), "half").unwrap();
        drop(output);
        assert_eq!(fs::read(&name).unwrap(), b"old");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);

        let output = Output::beside(&name).unwrap();
        fs::write(output.path(), "whole").unwrap();
        output.keep().unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"whole");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_place_that_takes_no_file_is_named() {
        let error = Output::beside(Path::new("/nowhere/a.iso")).unwrap_err().to_string();
        assert_eq!(error, "--output /nowhere/a.iso cannot be written");
        let error = Output::beside(Path::new("/")).unwrap_err().to_string();
        assert!(error.contains("is a folder"), "{error}");
    }
}
