//! Disks of guests: what the user asks for, whether it can be had, and what L1 is told.
//! Input: options and files the user named.

pub mod image;
pub mod machine;
mod place;

use crate::{
    files,
    plan::{GuestPlan, Plan},
};
use anyhow::{Context, Result, bail, ensure};
use image::look;
use machine::MachineDisk;
pub use place::{LONGEST_SERIAL, guid, parse_guid, parse_machine_disk, parse_partition};
use pv_abi::{
    bundle::{self, Backend, Disk, Partition},
    ext::devices::SLOTS,
};
use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    str::FromStr,
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

/// Where a disk comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An image on this machine.
    File(PathBuf),
    /// A disk that the machine has on which L1 will run.
    Machine(bundle::MachineDisk),
}

/// A disk that a guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// Where it comes from.
    pub source: Source,
    /// The part of that, if not all.
    pub partition: Option<Partition>,
    /// Whether the guest may write to it.
    pub access: Access,
    /// Its name for the guest, if one was given.
    pub name: Option<String>,
}

impl FromStr for DiskPlan {
    type Err = String;

    /// `FILE[,ro][,name=NAME][,part=PART]`, or `disk=DISK` in place of the file. The file may have commas
    /// in its name.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mut path, mut access, mut name, mut partition) = (text, Access::Write, None, None);
        while let Some((rest, word)) = path.rsplit_once(',') {
            match word.split_once('=') {
                None if word == "ro" => access = Access::Read,
                Some(("name", given)) => name = Some(check_name(given)?),
                Some(("part", given)) => partition = Some(parse_partition(given)?),
                _ => break,
            }
            path = rest;
        }
        if path.is_empty() {
            return Err("write FILE, FILE,ro, FILE,name=NAME or FILE,part=NUMBER".into());
        }
        let source = match path.strip_prefix("disk=") {
            Some(disk) => Source::Machine(parse_machine_disk(disk)?),
            None => Source::File(path.into()),
        };
        Self { source, partition, access, name }.sensible()
    }
}

impl DiskPlan {
    /// The plan, if it says which disk it is.
    ///
    /// # Errors
    /// What it has to say.
    pub fn sensible(self) -> Result<Self, String> {
        let any = self.source == Source::Machine(bundle::MachineDisk::Any);
        if any && !matches!(self.partition, Some(Partition::Guid(_))) {
            return Err("any disk of the machine may be meant: name a partition by its GUID".into());
        }
        Ok(self)
    }

    /// The image, if it is one on this machine.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match &self.source {
            Source::File(path) => Some(path),
            Source::Machine(_) => None,
        }
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

/// Disks that QEMU is to make of files, and those that L1 is to find.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disks {
    /// QEMU's.
    pub machine: Vec<MachineDisk>,
    /// Each guest's.
    pub guests: Vec<Vec<Disk>>,
}

/// Checks the disks of all guests, as far as that goes without QEMU, for a machine that QEMU makes here.
///
/// # Errors
/// The first thing found wrong and what to do about it.
pub fn check(plan: &Plan) -> Result<Disks> {
    let mut files = Files::default();
    let on = |disk: &DiskPlan| match disk.file() {
        Some(path) => {
            files.add(path, disk).map(|serial| (bundle::MachineDisk::Serial(serial), None))
        }
        None => bail!(
            "a disk of the machine is for `roost image` and --pack, whose machine has some: name a file"
        ),
    };
    let guests = settle(plan, on)?;
    Ok(Disks { machine: files.machine, guests })
}

/// Checks the disks of all guests for a machine that is made elsewhere, and has them.
///
/// # Errors
/// The first thing found wrong and what to do about it.
pub fn check_for_elsewhere(plan: &Plan) -> Result<Vec<Vec<Disk>>> {
    settle(plan, |disk| match &disk.source {
        Source::Machine(machine) => Ok((machine.clone(), None)),
        Source::File(path) => bail!(
            "disk {} cannot be packed: attach it to the machine, and name it as `disk=serial:NAME` \
             or by another word of docs/running.md",
            path.display()
        ),
    })
}

/// A partition that an image is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// What is in it.
    pub path: PathBuf,
    /// How that is laid out.
    pub format: machine::Format,
    /// Its identifier, as bytes lie on the disk.
    pub guid: [u8; 16],
    /// Its label.
    pub label: String,
}

/// Checks the disks of all guests for an image that holds those which are files.
///
/// # Errors
/// The first thing found wrong and what to do about it.
pub fn check_for_image(plan: &Plan) -> Result<(Vec<Embedded>, Vec<Vec<Disk>>)> {
    let mut files = Files::default();
    let mut embedded = Vec::<Embedded>::new();
    let on = |disk: &DiskPlan| {
        let path = match &disk.source {
            Source::Machine(machine) => return Ok((machine.clone(), None)),
            Source::File(path) => path,
        };
        ensure!(
            disk.partition.is_none(),
            "disk {}: a file becomes a partition of the image as a whole, so `part` cannot be used",
            path.display()
        );
        // Nothing is written to it here.
        files.add(path, &DiskPlan { access: Access::Read, ..disk.clone() })?;
        let format = look(path)?;
        let guid = guid()?;
        let label =
            path.file_stem().unwrap_or_default().to_string_lossy().chars().take(36).collect();
        embedded.push(Embedded { path: path.clone(), format, guid, label });
        Ok((bundle::MachineDisk::Any, Some(Partition::Guid(guid))))
    };
    let guests = settle(plan, on)?;
    Ok((embedded, guests))
}

/// The disks of each guest as L1 is told of them; `on` says where each is.
fn settle(
    plan: &Plan,
    mut on: impl FnMut(&DiskPlan) -> Result<(bundle::MachineDisk, Option<Partition>)>,
) -> Result<Vec<Vec<Disk>>> {
    let mut all = Vec::new();
    for guest in &plan.guests {
        let settled = check_guest(guest).and_then(|()| {
            guest
                .disks
                .iter()
                .enumerate()
                .map(|(slot, disk)| {
                    let (on, partition) = on(disk)?;
                    Ok(Disk {
                        // There are no more slots than fit.
                        slot: u8::try_from(slot).unwrap_or(u8::MAX),
                        on,
                        partition: partition.or_else(|| disk.partition.clone()),
                        name: name(slot, disk),
                        read_only: disk.access == Access::Read,
                    })
                })
                .collect()
        });
        all.push(settled.map_err(|why| plan.origin.about(guest, why))?);
    }
    Ok(all)
}

/// Checks that `qemu` can open all of `disks`.
///
/// # Errors
/// One is in use, or damaged.
pub fn try_all(disks: &[MachineDisk], qemu: &Path) -> Result<()> {
    disks.iter().try_for_each(|disk| disk.try_open(qemu))
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

/// Files that become disks of the machine.
#[derive(Debug, Default)]
struct Files {
    machine: Vec<MachineDisk>,
    /// Those that were named, by where they are: the disk, and whether a part of it was meant.
    seen: HashMap<PathBuf, (usize, bool)>,
}

impl Files {
    /// Adds the file of `disk`; its serial. Parts of one file are on one disk.
    fn add(&mut self, path: &Path, disk: &DiskPlan) -> Result<String> {
        let shown = path.display();
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
        let part = disk.partition.is_some();
        let number = self.machine.len();
        if let Some((other, other_part)) = self.seen.insert(real, (number, part)) {
            let machine = &mut self.machine[other];
            if part && other_part {
                self.seen
                    .values_mut()
                    .filter(|(seen, _)| *seen == number)
                    .for_each(|seen| seen.0 = other);
                if disk.access == Access::Write {
                    machine.access = Access::Write;
                }
                return Ok(machine.serial.clone());
            }
            ensure!(
                machine.access == Access::Read && disk.access == Access::Read,
                "disk {shown} is given twice: give each a file of its own, give both `ro`, or give \
                 each a partition"
            );
        }
        let serial = format!("roost{number}");
        let (path, format, access) = (path.to_owned(), look(path)?, disk.access);
        self.machine.push(MachineDisk { path, format, access, serial: serial.clone() });
        Ok(serial)
    }
}

#[cfg(test)]
mod tests;
