//! Boots images on machines of their own: QEMU's with either firmware, and Bochs's.

use crate::{
    folder::Folder,
    outcome::{self, Ended, Said},
    run,
    session::{self, Session, Wires},
    slot::Slot,
    terminal::Terminal,
};
use std::{fs, path::Path, process::Command};

/// Judges that on a machine of its own, which tells no status, all guests powered off and L1 did nothing
/// wrong.
///
/// # Panics
/// Something is not so.
pub fn assert_powered_off(ended: &Ended) {
    ended.assert_powered_off();
    assert!(ended.log.contains(" powered off"), "{}", ended.log);
    assert!(!ended.log.contains("@report"), "{}", ended.log);
}

/// What starts the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
}

/// What the image is put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// A CD drive.
    Cd,
    /// A disk, with QEMU's name for the format.
    Disk(&'static str),
    /// A virtio disk, which L1 can use, and whose content stays.
    Virtio(&'static str),
    /// The same, of a SCSI controller.
    Scsi(&'static str),
}

/// A machine of QEMU's.
#[derive(Clone, Copy, Debug)]
pub struct Qemu {
    /// What starts it.
    pub firmware: Firmware,
    /// Where the image is.
    pub drive: Drive,
    /// Its memory, MiB.
    pub memory: u32,
    /// Its CPUs.
    pub cpus: u32,
}

/// The network card that [`Qemu::boot_with_card`] gives: its address, and its place on the bus.
pub const CARD: &str = "52:54:00:01:02:03";
/// See above.
pub const CARD_AT: u32 = 9;

const OVMF: &str = "/usr/share/ovmf/OVMF.fd";

impl Qemu {
    /// Boots `image`; COM1 is on pipes, and L1's log is kept. Without QEMU's own device for it, L1 has to
    /// switch the machine off.
    ///
    /// # Panics
    /// QEMU cannot be started.
    #[must_use]
    pub fn boot<'a>(&self, folder: &'a Folder, image: &Path) -> Session<'a> {
        self.boot_beside(folder, image, &[])
    }

    /// The same with a card behind QEMU's user networking, on a machine that starts again after a reset.
    ///
    /// # Panics
    /// QEMU cannot be started.
    #[must_use]
    pub fn boot_with_card<'a>(&self, folder: &'a Folder, image: &Path) -> Session<'a> {
        let card = format!("virtio-net-pci,netdev=net,mac={CARD},addr={CARD_AT:x},romfile=");
        let card = ["-netdev", "user,id=net", "-device", &card];
        self.boot_with(folder, image, &[&card[..], &["-action", "reboot=reset"]].concat())
    }

    /// The same beside disks with these names in the folder, which are raw and have no serials; the first
    /// is device 2 on the bus.
    ///
    /// # Panics
    /// QEMU cannot be started.
    #[must_use]
    pub fn boot_beside<'a>(&self, folder: &'a Folder, image: &Path, disks: &[&str]) -> Session<'a> {
        let add = |(number, name): (usize, &&str)| {
            let file = folder.path(name);
            let drive = format!("if=none,id=beside{number},format=raw,file={}", file.display());
            let device = format!("virtio-blk-pci,drive=beside{number},addr={:x}", number + 2);
            ["-drive".into(), drive, "-device".into(), device]
        };
        let words: Vec<_> = disks.iter().enumerate().flat_map(add).collect();
        self.boot_with(folder, image, &words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same with more `words` for QEMU, which finds files in the folder.
    ///
    /// # Panics
    /// QEMU cannot be started.
    #[must_use]
    pub fn boot_with<'a>(&self, folder: &'a Folder, image: &Path, words: &[&str]) -> Session<'a> {
        let slot = Slot::take();
        let mut command = Command::new("qemu-system-x86_64");
        command.current_dir(folder.path(""));
        command.args(["-M", "q35", "-accel", "tcg", "-cpu", "EPYC-v3,check=off"]);
        command.args(["-m", &self.memory.to_string(), "-smp", &self.cpus.to_string()]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        command.arg("-serial").arg(format!("file:{}", folder.path(run::LOG).display()));
        if self.firmware == Firmware::Uefi {
            assert!(
                Path::new(OVMF).exists(),
                "{OVMF} does not exist: run scripts/setup.sh --tests"
            );
            command.args(["-bios", OVMF]);
        }
        command.args(words);
        let file = image.display();
        match self.drive {
            // Before disks that look as if they could be booted.
            Drive::Cd => command.args(["-boot", "d", "-cdrom"]).arg(image),
            Drive::Disk(format) => {
                command.args(["-drive", &format!("file={file},format={format},snapshot=on")])
            }
            Drive::Virtio(format) => command
                .args(["-drive", &format!("if=none,id=disk,file={file},format={format}")])
                .args(["-device", "virtio-blk-pci,drive=disk"]),
            Drive::Scsi(format) => command
                .args(["-drive", &format!("if=none,id=disk,file={file},format={format}")])
                .args(["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk"]),
        };
        Session::start(folder, command, Wires::Pipes, slot)
    }
}

/// Bochs's machine: its CPU has PCID, INVPCID, x2APIC and TSC deadlines, all in software.
#[derive(Clone, Copy, Debug)]
pub struct Bochs {
    /// Its CPU model.
    pub model: &'static str,
    /// Its memory, MiB.
    pub memory: u32,
    /// Its CPUs.
    pub cpus: u32,
    /// Seconds until it has to be done.
    pub limit: u64,
}

/// What a shell calls the end by this signal.
const KILLED: i32 = 128 + 9;
/// Names of files in the folder.
const SETTINGS: &str = "bochsrc";
const ORDERS: &str = "bochs.orders";
const CONSOLE: &str = "com1";

impl Bochs {
    /// Boots `image` and waits until the machine is off. What the console showed is the output.
    ///
    /// # Panics
    /// Bochs cannot be started, or the machine is not off in time.
    #[must_use]
    pub fn run(&self, folder: &Folder, image: &Path) -> Ended {
        let _slot = Slot::take();
        folder.file(SETTINGS, self.settings(folder, image).as_bytes());
        // Debian's Bochs has a debugger, which waits for orders.
        folder.file(ORDERS, b"c\n");
        // It draws its screen on a terminal, which nobody looks at.
        let Terminal { user, program } = Terminal::new().expect("no terminal to be had");
        let limit = self.limit.to_string();
        // It would outlive a test that is stopped.
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", &limit, "bochs", "-q", "-f", SETTINGS, "-rc", ORDERS]);
        command.current_dir(folder.path("")).env("TERM", "xterm");
        let screen = fs::File::create(folder.path("screen")).expect("temporary file");
        command.stdin(outcome::handle(&program)).stdout(program).stderr(screen);
        let mut child = command.spawn().expect("timeout, of coreutils");
        drop(command);
        let watched = session::listen(user);
        let status = child.wait().expect("cannot wait for Bochs").code().unwrap_or(KILLED);
        drop(watched);
        let text = |name| {
            String::from_utf8_lossy(&fs::read(folder.path(name)).unwrap_or_default()).into_owned()
        };
        let (out, log) = (text(CONSOLE), text(run::LOG));
        assert_ne!(status, 127, "Bochs is not installed: run scripts/setup.sh --tests");
        assert_ne!(status, KILLED, "Bochs is not done after {limit} s: {out}\n{log}");
        // The status says only that it ended; the log says how L1 did.
        run::ended(folder, Said { status: 0, out, err: String::new() })
    }

    fn settings(&self, folder: &Folder, image: &Path) -> String {
        let [console, log, own] = [CONSOLE, run::LOG, "bochs.log"].map(|name| folder.path(name));
        let [console, log, own] = [&console, &log, &own].map(|file| file.display());
        let image = image.display();
        format!(
            "config_interface: textconfig\n\
             display_library: term\n\
             plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, serial=1\n\
             cpu: model={model}, count={cpus}, ips=100000000, reset_on_triple_fault=0\n\
             memory: guest={memory}, host={memory}\n\
             romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
             vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
             ata0-master: type=cdrom, path={image}, status=inserted\n\
             boot: cdrom\n\
             com1: enabled=1, mode=file, dev={console}\n\
             com2: enabled=1, mode=file, dev={log}\n\
             clock: sync=none\n\
             log: {own}\n\
             panic: action=fatal\n",
            model = self.model,
            memory = self.memory,
            cpus = self.cpus,
        )
    }
}
