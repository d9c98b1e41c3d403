//! Disks of guests: what the user asks for, whether it can be had, and what QEMU is told.
//! Input: options and files the user named.

use crate::{
    files,
    plan::{GuestPlan, Plan},
    process,
    qemu::option_path,
};
use anyhow::{Context, Result, bail, ensure};
use pv_abi::{
    bundle::{Backend, Disk},
    ext::devices::SLOTS,
};
use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::Read,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
    time::Duration,
};

/// The longest name of a disk, bytes: what GET_ID has room for.
const LONGEST_NAME: usize = 20;

/// Whether a guest may write to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// It reads and writes.
    #[default]
    Write,
    /// It only reads.
    Read,
}

/// A disk that a guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// The image.
    pub path: PathBuf,
    /// Whether the guest may write to it.
    pub access: Access,
    /// Its name for the guest, if one was given.
    pub name: Option<String>,
}

impl FromStr for DiskPlan {
    type Err = String;

    /// `FILE[,ro][,name=NAME]`. The file may have commas in its name.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mut path, mut access, mut name) = (text, Access::Write, None);
        while let Some((rest, word)) = path.rsplit_once(',') {
            match word.split_once('=') {
                None if word == "ro" => access = Access::Read,
                Some(("name", given)) => name = Some(check_name(given)?),
                _ => break,
            }
            path = rest;
        }
        if path.is_empty() {
            return Err("write FILE, FILE,ro or FILE,name=NAME".into());
        }
        Ok(Self { path: path.into(), access, name })
    }
}

/// `name`, if a guest can be told it.
///
/// # Errors
/// What a name is.
pub fn check_name(name: &str) -> Result<String, String> {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic());
    if name.is_empty() || name.len() > LONGEST_NAME || !plain {
        return Err(format!(
            "`{name}` is no name of a disk: take 1 to {LONGEST_NAME} printable ASCII characters"
        ));
    }
    Ok(name.into())
}

/// How an image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow2,
}

/// A disk of the machine, as QEMU is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDisk {
    path: PathBuf,
    format: Format,
    access: Access,
    serial: String,
}

impl MachineDisk {
    /// The value of QEMU's `-drive`.
    #[must_use]
    pub fn drive(&self) -> OsString {
        let mut value = option_path("if=none,file=", &self.path);
        let format = match self.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        value.push(format!(",format={format},id={}", self.serial));
        if self.access == Access::Read {
            value.push(",readonly=on");
        }
        value
    }

    /// The value of its `-device`.
    #[must_use]
    pub fn device(&self) -> String {
        let serial = &self.serial;
        format!("virtio-blk-pci,drive={serial},serial={serial},num-queues=1,disable-legacy=on")
    }

    /// Has `qemu` open the image and leave it at that.
    fn try_open(&self, qemu: &Path) -> Result<()> {
        let mut command = Command::new(qemu);
        command.args(["-M", "q35", "-m", "16", "-nodefaults", "-display", "none", "-S"]);
        // Without a device QEMU would not lock the image.
        command.arg("-drive").arg(self.drive()).arg("-device").arg(self.device());
        command.args(["-monitor", "stdio"]);
        let reply = process::ask(command, b"quit\n", Duration::from_secs(20))?;
        if reply.status.success() {
            return Ok(());
        }
        let shown = self.path.display();
        ensure!(
            !reply.stderr.contains(" lock"),
            "disk {shown} is in use by another QEMU: end that, or give both runs `ro`"
        );
        // QEMU repeats its own name and the option first.
        let why = reply.stderr.lines().last().unwrap_or("no reason given");
        let why =
            why.rsplit_once(&format!("{}: ", self.drive().display())).map_or(why, |(_, why)| why);
        bail!("QEMU cannot use disk {shown}: {}", why.trim())
    }
}

/// Checks the disks of all guests, as far as that goes without QEMU; those of the machine.
///
/// # Errors
/// The first thing found wrong and what to do about it.
pub fn check(plan: &Plan) -> Result<Vec<MachineDisk>> {
    let mut disks = Vec::new();
    let mut seen = HashMap::new();
    for guest in &plan.guests {
        check_guest(guest).map_err(|why| plan.origin.about(guest, why))?;
        for disk in &guest.disks {
            let machine = check_one(disk, disks.len(), &mut seen);
            disks.push(machine.map_err(|why| plan.origin.about(guest, why))?);
        }
    }
    Ok(disks)
}

/// Checks that `qemu` can open all of `disks`.
///
/// # Errors
/// One is in use, or damaged.
pub fn try_all(disks: &[MachineDisk], qemu: &Path) -> Result<()> {
    disks.iter().try_for_each(|disk| disk.try_open(qemu))
}

/// The disks of each guest as L1 is told of them.
#[must_use]
pub fn describe(plan: &Plan) -> Vec<Vec<Disk>> {
    let mut number = 0;
    let mut next = |slot: usize, disk: &DiskPlan| {
        let serial = serial(number);
        number += 1;
        let read_only = disk.access == Access::Read;
        // There are no more slots than fit.
        Disk {
            slot: u8::try_from(slot).unwrap_or(u8::MAX),
            serial,
            name: name(slot, disk),
            read_only,
        }
    };
    let guests = plan.guests.iter();
    guests
        .map(|guest| guest.disks.iter().enumerate().map(|(slot, disk)| next(slot, disk)).collect())
        .collect()
}

fn serial(number: usize) -> String {
    format!("roost{number}")
}

fn name(slot: usize, disk: &DiskPlan) -> String {
    disk.name.clone().unwrap_or_else(|| format!("disk{slot}"))
}

fn check_guest(guest: &GuestPlan) -> Result<()> {
    let disks = &guest.disks;
    ensure!(disks.len() <= SLOTS, "a guest has {SLOTS} disks at most: leave some out");
    ensure!(
        disks.is_empty() || guest.backend != Backend::Assisted,
        "a guest that L0 runs has no disks: give it backend auto or shadow"
    );
    let names: Vec<_> = disks.iter().enumerate().map(|(slot, disk)| name(slot, disk)).collect();
    let twice = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name));
    match twice {
        Some((_, name)) => bail!("two disks have the name '{name}': choose another for one"),
        None => Ok(()),
    }
}

fn check_one(
    disk: &DiskPlan,
    number: usize,
    seen: &mut HashMap<PathBuf, Access>,
) -> Result<MachineDisk> {
    let (path, shown) = (&disk.path, disk.path.display());
    files::check("disk", path)?;
    if disk.access == Access::Write {
        let locked = fs::metadata(path).is_ok_and(|meta| meta.permissions().readonly());
        let opened = OpenOptions::new().read(true).write(true).open(path);
        ensure!(
            !locked && opened.is_ok(),
            "disk {shown} may not be written: add `ro`, or change its permissions"
        );
    }
    let real = fs::canonicalize(path).with_context(|| format!("cannot use disk {shown}"))?;
    if let Some(other) = seen.insert(real, disk.access) {
        ensure!(
            other == Access::Read && disk.access == Access::Read,
            "disk {shown} is given twice: give each a file of its own, or give both `ro`"
        );
    }
    let format = detect(path).with_context(|| format!("cannot read disk {shown}"))?;
    Ok(MachineDisk { path: path.clone(), format, access: disk.access, serial: serial(number) })
}

fn detect(path: &Path) -> Result<Format> {
    let mut start = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut start)?;
    Ok(if start == *b"QFI\xfb" { Format::Qcow2 } else { Format::Raw })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> DiskPlan {
        text.parse().unwrap()
    }

    #[test]
    fn options_follow_the_file() {
        let plain = DiskPlan { path: "a.img".into(), access: Access::Write, name: None };
        assert_eq!(parsed("a.img"), plain);
        assert_eq!(parsed("a.img,ro"), DiskPlan { access: Access::Read, ..plain.clone() });
        let named = DiskPlan { name: Some("root".into()), access: Access::Read, ..plain.clone() };
        assert_eq!(parsed("a.img,name=root,ro"), named);
        assert_eq!(parsed("a.img,ro,name=root"), named);
        assert_eq!(parsed("a,b.img,x").path, PathBuf::from("a,b.img,x"));
        for bad in ["", ",ro", "a,name=", "a,name=one that is far too long", "a,name=two words"] {
            assert!(bad.parse::<DiskPlan>().is_err(), "{bad}");
        }
    }

    #[test]
    fn files_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let disk = |path: &Path, access| DiskPlan { path: path.into(), access, name: None };
        let raw = file("raw", &[0; 512]);
        let qcow2 = file("qcow2", b"QFI\xfb\0\0\0\x03");
        let mut seen = HashMap::new();
        let first = check_one(&disk(&raw, Access::Write), 0, &mut seen).unwrap();
        assert_eq!((first.format, first.serial.as_str()), (Format::Raw, "roost0"));
        let second = check_one(&disk(&qcow2, Access::Read), 1, &mut seen).unwrap();
        assert_eq!(second.format, Format::Qcow2);
        assert!(second.drive().to_string_lossy().ends_with("format=qcow2,id=roost1,readonly=on"));
        check_one(&disk(&qcow2, Access::Read), 2, &mut seen).unwrap();
        let mut reason = |path: &Path, access| {
            format!("{:#}", check_one(&disk(path, access), 3, &mut seen).unwrap_err())
        };
        assert!(reason(&raw, Access::Read).contains("is given twice"));
        assert!(reason(&dir.path().join("none"), Access::Read).contains("No such file"));
        assert!(reason(&file("empty", b""), Access::Read).contains("is empty"));
        let locked = file("locked", b"x");
        let mut permissions = fs::metadata(&locked).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&locked, permissions).unwrap();
        assert!(reason(&locked, Access::Write).contains("may not be written: add `ro`"));
    }
}
