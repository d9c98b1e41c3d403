//! Disks of the machine that QEMU makes: what it is told of them, and whether it can open them.
//! Input: files the user named.

use super::Access;
use crate::{
    process,
    qemu::{Bus, option_path},
};
use anyhow::{Result, bail, ensure};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How an image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As it is.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl Format {
    /// QEMU's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A disk of the machine, as QEMU is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDisk {
    /// The image.
    pub path: PathBuf,
    /// How it is laid out.
    pub format: Format,
    /// Whether any guest may write to it.
    pub access: Access,
    /// By which L1 finds it.
    pub serial: String,
}

impl MachineDisk {
    /// The value of QEMU's `-drive`.
    #[must_use]
    pub fn drive(&self) -> OsString {
        let mut value = option_path("if=none,file=", &self.path);
        let format = self.format.name();
        value.push(format!(",format={format},id={}", self.serial));
        value.push(match self.access {
            Access::Read => ",readonly=on",
            // What the guest discards takes no room on this machine.
            Access::Write => ",discard=unmap",
        });
        value
    }

    /// The value of its `-device`.
    #[must_use]
    pub fn device(&self, bus: Bus) -> String {
        let (device, serial) = (bus.device("virtio-blk"), &self.serial);
        // The guest is told of errors. Else QEMU would stop the machine if there is no room here.
        format!("{device},drive={serial},serial={serial},num-queues=1,rerror=report,werror=report")
    }

    /// Has `qemu` open the image and leave it at that.
    pub(super) fn try_open(&self, qemu: &Path) -> Result<()> {
        let mut command = Command::new(qemu);
        command.args(["-M", "q35", "-m", "16", "-nodefaults", "-display", "none", "-S"]);
        // Without a device QEMU would not lock the image.
        command.arg("-drive").arg(self.drive()).arg("-device").arg(self.device(Bus::Pci));
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
