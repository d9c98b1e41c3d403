//! Looks at a running Debian or Ubuntu system: its kernel, its root disk, its boot menu.
//! Input: files of the system, most of them the kernel's and udev's.

mod card;

pub use card::Card;

use crate::{
    disk::{self, LONGEST_SERIAL},
    process,
};
use anyhow::{Context, Result, bail, ensure};
use pv_abi::bundle::MachineDisk;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Words of a kernel's command line that are GRUB's, or about a console that the guest has not.
const DROPPED: &[&str] = &["BOOT_IMAGE=", "console=", "earlyprintk", "earlycon", "initrd="];
/// How Linux calls disks that L1 may be able to drive: virtio's, and those of SCSI controllers.
const DISKS: [&str; 2] = ["vd", "sd"];
/// The driver for disks that the guest's ramdisk must have, or its kernel.
const DRIVER: &str = "xen-blkfront";
const BUILT_IN: &str = "CONFIG_XEN_BLKDEV_FRONTEND=y";
/// Lists the files of a ramdisk, in some seconds.
const LISTER: &str = "usr/bin/lsinitramfs";
const LISTER_LIMIT: Duration = Duration::from_secs(120);
/// How Linux writes places on the buses that L1 looks on: those of the first PCI segment.
const SEGMENT: &str = "0000:";

/// What `roost install` needs to know of a system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Its kernel.
    pub kernel: PathBuf,
    /// The ramdisk of that.
    pub initrd: PathBuf,
    /// The kernel's release.
    pub release: String,
    /// Its command line, for a guest.
    pub cmdline: String,
    /// The disk that its root file system is on, by something that L1 can see too.
    pub disk: MachineDisk,
    /// The same as a user writes it.
    pub disk_words: String,
    /// Linux's name of it.
    pub disk_name: String,
    /// The card that leads out of the machine, if L1 can drive it.
    pub card: Option<Card>,
    /// Why there is none.
    pub no_card: String,
    /// The UUID of the file system that holds /boot.
    pub boot_uuid: String,
    /// The path of /boot on that.
    pub boot: &'static str,
    /// The machine's memory, bytes.
    pub memory: u64,
    /// Its CPUs.
    pub cpus: u32,
}

impl System {
    /// Looks at the system below `root`.
    ///
    /// # Errors
    /// Why L1 cannot start it.
    pub fn look(root: &Path) -> Result<Self> {
        ensure!(
            root.join("boot/grub/grub.cfg").exists() && root.join("etc/grub.d").is_dir(),
            "no GRUB below {}: only systems that start by Debian's or Ubuntu's GRUB are supported",
            root.display()
        );
        ensure!(
            !has_secure_boot(root),
            "Secure Boot is on, and L1 is not signed: switch it off in the firmware first"
        );
        let mounts = text(root, "proc/self/mountinfo")?;
        let system_root = Device::of(root, &mounts, "/")?.context("nothing is mounted at /")?;
        let boot = Device::of(root, &mounts, "/boot")?;
        let (disk_name, disk, disk_words) = system_root.disk()?;
        let release = text(root, "proc/sys/kernel/osrelease")?.trim().to_owned();
        let (kernel, initrd) = kernel(root, &release)?;
        check_ramdisk(root, &release, &initrd)?;
        let boot_device = boot.as_ref().unwrap_or(&system_root);
        let boot_uuid = boot_device.property("ID_FS_UUID").with_context(|| {
            format!("{} has no UUID by which GRUB could find it", boot_device.name)
        })?;
        let (card, no_card) = match Card::look(root) {
            Ok(card) => (Some(card), String::new()),
            Err(why) => (None, why),
        };
        Ok(Self {
            kernel,
            initrd,
            release,
            card,
            no_card,
            cmdline: cmdline(&text(root, "proc/cmdline")?, &system_root)?,
            disk,
            disk_words,
            disk_name,
            boot_uuid,
            boot: if boot.is_some() { "" } else { "/boot" },
            memory: memory(&text(root, "proc/meminfo")?)
                .context("cannot tell the machine's memory")?,
            cpus: cpus(&text(root, "proc/cpuinfo")?),
        })
    }
}

fn text(root: &Path, name: &str) -> Result<String> {
    let path = root.join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn has_secure_boot(root: &Path) -> bool {
    let variables = root.join("sys/firmware/efi/efivars");
    let named =
        |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("SecureBoot-");
    let mut found = fs::read_dir(variables).into_iter().flatten().flatten().filter(named);
    // Four bytes of attributes, then the value.
    found.any(|entry| fs::read(entry.path()).is_ok_and(|bytes| bytes.get(4) == Some(&1)))
}

/// The kernel that runs, or the only one, and its ramdisk.
fn kernel(root: &Path, release: &str) -> Result<(PathBuf, PathBuf)> {
    let [kernel, initrd] =
        ["vmlinuz", "initrd.img"].map(|name| root.join(format!("boot/{name}-{release}")));
    for file in [&kernel, &initrd] {
        ensure!(
            file.exists(),
            "{} is not there: start the system with a kernel of its own, with a ramdisk",
            file.display()
        );
    }
    let config = config(root, release);
    ensure!(
        config.is_empty() || config.lines().any(|line| line == "CONFIG_XEN_PV=y"),
        "kernel {release} was built without CONFIG_XEN_PV: install Debian's or Ubuntu's own"
    );
    Ok((kernel, initrd))
}

/// How the kernel was built, if the system has that.
fn config(root: &Path, release: &str) -> String {
    fs::read_to_string(root.join(format!("boot/config-{release}"))).unwrap_or_default()
}

/// A ramdisk for this very machine may have no driver for a guest's disks. One that the system's own program cannot
/// list is taken as it is.
fn check_ramdisk(root: &Path, release: &str, initrd: &Path) -> Result<()> {
    let lister = root.join(LISTER);
    if config(root, release).lines().any(|line| line == BUILT_IN) || !lister.exists() {
        return Ok(());
    }
    let mut command = Command::new(lister);
    command.arg(initrd);
    let files = match process::ask(command, &[], LISTER_LIMIT) {
        Ok(reply) if reply.status.success() => reply.stdout,
        _ => return Ok(()),
    };
    let module = format!("{DRIVER}.ko");
    // Compressed modules have one more ending.
    let is_driver = |path: &str| path.rsplit('/').next().is_some_and(|n| n.starts_with(&module));
    ensure!(
        files.lines().any(is_driver),
        "{} has no driver for a guest's disks: add {DRIVER} to /etc/initramfs-tools/modules and run \
         update-initramfs -u",
        initrd.display()
    );
    Ok(())
}

/// The command line that the system was started with, for a guest.
fn cmdline(text: &str, root: &Device) -> Result<String> {
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        if DROPPED.iter().any(|dropped| word.starts_with(dropped)) {
            continue;
        }
        // The guest's disks have other names.
        if word.starts_with("root=/dev/") {
            let uuid = root.property("ID_FS_UUID");
            let uuid =
                uuid.with_context(|| format!("{word} says no UUID, and {} has none", root.name))?;
            words.push(format!("root=UUID={uuid}"));
        } else {
            words.push(word.to_owned());
        }
    }
    ensure!(
        words.iter().any(|word| word.starts_with("root=")),
        "the kernel's command line says nothing of root=: only systems whose ramdisk mounts it are supported"
    );
    words.push("console=hvc0".into());
    Ok(words.join(" "))
}

fn memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn cpus(cpuinfo: &str) -> u32 {
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    u32::try_from(count).unwrap_or(1).clamp(1, crate::plan::MOST_VCPUS)
}

/// A block device that something is mounted from.
#[derive(Clone, Debug)]
struct Device {
    /// Linux's name.
    name: String,
    /// Its folder below /sys.
    sys: PathBuf,
    /// What udev says of it, and of the disk that it is a part of.
    properties: String,
    disk_properties: String,
}

impl Device {
    /// What is mounted at `place`, if anything is; symbolic links below /sys are relative.
    fn of(root: &Path, mounts: &str, place: &str) -> Result<Option<Self>> {
        let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        // The last one covers those before.
        let Some(mount) =
            mounts.lines().map(fields).rfind(|fields| fields.get(4).is_some_and(|at| at == place))
        else {
            return Ok(None);
        };
        let number = &mount[2];
        let sys = root.join("sys/dev/block").join(number);
        let sys = fs::canonicalize(&sys).with_context(|| {
            format!(
                "{place} is on no block device ({number}): only plain file systems are supported"
            )
        })?;
        let name = sys.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let udev = |number: &str| {
            fs::read_to_string(root.join(format!("run/udev/data/b{number}"))).unwrap_or_default()
        };
        let parent = sys.parent().unwrap_or(&sys);
        let whole = if sys.join("partition").exists() { parent } else { &sys };
        let whole_number = fs::read_to_string(whole.join("dev")).unwrap_or_default();
        Ok(Some(Self {
            name,
            properties: udev(number),
            disk_properties: udev(whole_number.trim()),
            sys: sys.clone(),
        }))
    }

    fn property(&self, name: &str) -> Option<String> {
        find(&self.properties, name)
    }

    /// The disk: Linux's name, how L1 finds it, and how a user writes that.
    fn disk(&self) -> Result<(String, MachineDisk, String)> {
        let name = &self.name;
        if name.starts_with("dm-") {
            bail!("the root file system is on LVM or encrypted ({name}): that is not supported");
        }
        if name.starts_with("md") {
            bail!("the root file system is on a RAID ({name}): that is not supported");
        }
        let whole = match self.sys.join("partition").exists() {
            true => self.sys.parent().unwrap_or(&self.sys),
            false => &self.sys,
        };
        let disk = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_disk = DISKS.iter().any(|kind| disk.starts_with(kind));
        let Some(place) = virtio_place(&self.sys).filter(|_| is_disk) else {
            bail!("the root disk {disk} is no virtio disk, and L1 drives no others");
        };
        let place = place.strip_prefix(SEGMENT).with_context(|| {
            format!("the root disk {disk} is at {place}, and L1 looks on PCI segment 0 alone")
        })?;
        let serial = serial(whole);
        let table = find(&self.disk_properties, "ID_PART_TABLE_UUID").filter(|_| {
            find(&self.disk_properties, "ID_PART_TABLE_TYPE").as_deref() == Some("gpt")
        });
        // What lies on the disk itself goes where the disk goes.
        let words = match table {
            Some(guid) if disk::parse_guid(&guid).is_some() => format!("gpt:{guid}"),
            _ if (1..=LONGEST_SERIAL).contains(&serial.len()) => format!("serial:{serial}"),
            _ => format!("pci:{place}"),
        };
        let machine = disk::parse_machine_disk(&words).map_err(anyhow::Error::msg)?;
        Ok((disk, machine, words))
    }
}

/// The serial of the disk with folder `sys`; empty if it has none.
fn serial(sys: &Path) -> String {
    // A SCSI disk has the page in which it says it, behind four bytes.
    let page = fs::read(sys.join("device/vpd_pg80")).unwrap_or_default();
    let page = page.get(4..).map(|text| String::from_utf8_lossy(text).into_owned());
    let text = fs::read_to_string(sys.join("serial")).ok().or(page).unwrap_or_default();
    text.trim_matches(|end: char| end.is_whitespace() || end == '\0').to_owned()
}

/// Where the virtio device is on PCI whose folder below /sys is, or is above, `sys`.
fn virtio_place(sys: &Path) -> Option<String> {
    let names: Vec<_> = sys.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    let at = names.iter().position(|name| {
        name.strip_prefix("virtio").is_some_and(|rest| rest.parse::<u32>().is_ok())
    })?;
    names.get(at.checked_sub(1)?).map(|name| name.clone().into_owned())
}

/// A property in udev's data.
fn find(data: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        line.strip_prefix("E:")?.strip_prefix(name)?.strip_prefix('=').map(str::to_owned)
    };
    data.lines().find_map(value)
}

#[cfg(test)]
mod tests;
