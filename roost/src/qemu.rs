//! Finds QEMU and builds its command line.

use crate::{
    accel::{Accel, Clock},
    disk::machine::MachineDisk,
    memory::MIB,
    network::MachineCard,
    process,
};
use anyhow::{Context, Result};
use pv_abi::bundle::ConsolePort;
use std::{
    env,
    ffi::{OsStr, OsString},
    fmt,
    os::{
        fd::RawFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The program looked for when none is named.
const PROGRAM: &str = "qemu-system-x86_64";

/// Finds QEMU: the program named, or the usual one on `PATH`.
///
/// # Errors
/// Says what to install.
pub fn find(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(named) = named {
        return on_path(named.as_os_str())
            .with_context(|| format!("QEMU not found at {}: check --qemu", named.display()));
    }
    on_path(OsStr::new(PROGRAM))
        .with_context(|| format!("{PROGRAM} not found: install the package qemu-system-x86"))
}

/// Resolves a program name as a shell does.
pub fn on_path(program: &OsStr) -> Option<PathBuf> {
    if Path::new(program).components().count() > 1 {
        return Some(PathBuf::from(program)).filter(|path| path.is_file());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// A QEMU version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Asks a QEMU for its version.
///
/// # Errors
/// It does not start, or does not answer as QEMU does.
pub fn version(qemu: &Path) -> Result<Version> {
    let mut command = Command::new(qemu);
    command.arg("--version");
    let reply = process::ask(command, b"", Duration::from_secs(10))?;
    parse_version(&reply.stdout).with_context(|| format!("{} is no QEMU", qemu.display()))
}

fn parse_version(text: &str) -> Option<Version> {
    let rest = text.strip_prefix("QEMU emulator version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some(Version { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
}

/// What the guest's console is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// Standard input and output as they are.
    Plain,
    /// A terminal: Ctrl-C goes to the guest and Ctrl-a x quits. QEMU tells its end to this pair of
    /// pipes (`PATH.in`, `PATH.out`).
    Terminal(PathBuf),
}

/// How the machine's virtio devices are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// To PCI.
    Pci,
    /// By registers in memory alone.
    Memory,
}

impl Bus {
    /// That of QEMU's machine type `kind`, which may have options behind commas.
    fn of(kind: &str) -> Self {
        if kind.split(',').next() == Some("microvm") { Self::Memory } else { Self::Pci }
    }

    /// QEMU's name for its virtio device `name`, of virtio 1.
    #[must_use]
    pub fn device(self, name: &str) -> String {
        match self {
            Self::Pci => format!("{name}-pci,disable-legacy=on"),
            Self::Memory => format!("{name}-device"),
        }
    }
}

/// The machine that L1 runs on.
#[derive(Clone, Debug)]
pub struct Machine {
    /// QEMU's machine type.
    pub kind: String,
    /// How QEMU runs code.
    pub accel: Accel,
    /// CPU model, if not the default for `accel`.
    pub cpu: Option<String>,
    /// CPUs.
    pub cpus: u32,
    /// Hardware threads of each core.
    pub threads: u32,
    /// Memory in bytes, whole MiB.
    pub memory: u64,
    /// The L1 image.
    pub l1: PathBuf,
    /// The boot module.
    pub bundle: PathBuf,
    /// File for L1's log, COM2.
    pub log: PathBuf,
    /// The guest's console, COM1.
    pub console: Console,
    /// A socket over which QEMU is controlled, by its number as an inherited file.
    pub control: Option<RawFd>,
    /// Its disks.
    pub disks: Vec<MachineDisk>,
    /// Its network cards.
    pub cards: Vec<MachineCard>,
    /// It has a device that gives random bytes.
    pub entropy: bool,
    /// Where the console is.
    pub port: ConsolePort,
}

impl Machine {
    /// QEMU's arguments.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments::default();
        let bus = Bus::of(&self.kind);
        args.pair("-M", &self.kind);
        if bus == Bus::Memory {
            args.pair("-global", "virtio-mmio.force-legacy=false");
        }
        match self.accel {
            Accel::Kvm => args.pair("-accel", "kvm"),
            Accel::Tcg(Clock::Host) => args.pair("-accel", "tcg"),
            Accel::Tcg(Clock::Instructions) => {
                args.pair("-accel", "tcg,thread=single");
                args.pair("-icount", "shift=0,sleep=off");
            }
        }
        let model = match (self.accel, self.threads) {
            (Accel::Kvm, _) => "host",
            (_, 1) => "max",
            // It is a CPU of AMD's, which tells of threads there.
            _ => "max,topoext=on",
        };
        let model = self.cpu.as_deref().unwrap_or(model);
        match self.accel {
            // QEMU 10 has one in its emulator, and ends where its counter is read while time is counted so.
            Accel::Tcg(Clock::Instructions) => args.pair("-cpu", format!("{model},-x2apic")),
            _ => args.pair("-cpu", model),
        }
        let threads = match self.threads {
            1 => String::new(),
            threads => format!(",threads={threads}"),
        };
        args.pair("-smp", format!("{}{threads}", self.cpus));
        args.pair("-m", (self.memory / MIB).to_string());
        args.words("-nodefaults -display none -no-reboot -device isa-debug-exit,iobase=0xf4");
        match &self.console {
            Console::Plain => args.pair("-chardev", "stdio,id=console,signal=off"),
            Console::Terminal(pipes) => {
                args.pair("-chardev", "stdio,id=console,mux=on,signal=off");
                args.pair("-chardev", option_path("pipe,id=end,path=", pipes));
                args.pair("-mon", "chardev=end,mode=control");
            }
        }
        match self.port {
            ConsolePort::Serial => args.pair("-serial", "chardev:console"),
            ConsolePort::Virtio => {
                args.pair("-serial", "null");
                args.pair("-device", bus.device("virtio-serial") + ",max_ports=1");
                args.pair("-device", "virtconsole,chardev=console");
            }
        }
        args.pair("-chardev", option_path("file,id=log,path=", &self.log));
        match bus {
            Bus::Pci => args.pair("-serial", "chardev:log"),
            // QEMU makes it one serial port.
            Bus::Memory => args.pair("-device", "isa-serial,index=1,chardev=log"),
        }
        if let Some(socket) = self.control {
            args.pair("-chardev", format!("socket,id=control,fd={socket}"));
            args.pair("-mon", "chardev=control,mode=control");
        }
        for disk in &self.disks {
            args.pair("-drive", disk.drive());
            args.pair("-device", disk.device(bus));
        }
        for card in &self.cards {
            args.pair("-netdev", card.netdev());
            args.pair("-device", card.device(bus));
        }
        if self.entropy {
            args.pair("-device", bus.device("virtio-rng"));
        }
        args.pair("-kernel", &self.l1);
        args.pair("-initrd", &self.bundle);
        args.0
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn pair(&mut self, option: &str, value: impl AsRef<OsStr>) {
        self.0.push(option.into());
        self.0.push(value.as_ref().into());
    }

    fn words(&mut self, words: &str) {
        self.0.extend(words.split(' ').map(OsString::from));
    }
}

/// An option value that ends in a path; QEMU wants commas in it doubled.
#[must_use]
pub fn option_path(option: &str, path: &Path) -> OsString {
    let mut value = option.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        value.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    }
    OsString::from_vec(value)
}

/// False for lines of QEMU's standard error that say nothing to a user: `-cpu max` asks TCG for
/// features it lacks on purpose, and L1 reads CPUID to see what it got. That QEMU was told to end
/// is no news either: this process did it, and says why.
#[must_use]
pub fn worth_showing(line: &str) -> bool {
    let expected = ["TCG doesn't support requested feature", "terminating on signal 15 from pid"];
    !expected.iter().any(|words| line.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Access, machine::Format};

    fn machine() -> Machine {
        Machine {
            kind: "q35".into(),
            accel: Accel::Tcg(Clock::Host),
            cpu: None,
            cpus: 1,
            threads: 1,
            memory: 600 * MIB,
            l1: "l1".into(),
            bundle: "dir/bundle".into(),
            log: "a,b.log".into(),
            console: Console::Plain,
            control: None,
            disks: vec![],
            cards: vec![],
            entropy: false,
            port: ConsolePort::Serial,
        }
    }

    fn line(machine: &Machine) -> String {
        let arguments = machine.arguments();
        let words: Vec<_> = arguments.iter().map(|word| word.to_str().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn a_plain_run() {
        assert_eq!(
            line(&machine()),
            "-M q35 -accel tcg -cpu max -smp 1 -m 600 -nodefaults -display none -no-reboot \
             -device isa-debug-exit,iobase=0xf4 -chardev stdio,id=console,signal=off \
             -serial chardev:console -chardev file,id=log,path=a,,b.log -serial chardev:log \
             -kernel l1 -initrd dir/bundle"
        );
    }

    /// The log stays on the second serial port.
    #[test]
    fn the_console_may_be_virtios() {
        let line = line(&Machine { port: ConsolePort::Virtio, ..machine() });
        assert!(line.contains(
            "-serial null -device virtio-serial-pci,disable-legacy=on,max_ports=1 \
             -device virtconsole,chardev=console -chardev file,id=log"
        ));
        assert!(line.contains("-serial chardev:log"));
    }

    /// Its only bus has no slots, and it comes with one serial port.
    #[test]
    fn a_microvm_has_no_pci() {
        let disk = MachineDisk {
            path: "disk.img".into(),
            format: Format::Raw,
            access: Access::Write,
            serial: "disk0".into(),
        };
        for kind in ["microvm", "microvm,acpi=off"] {
            let (port, disks) = (ConsolePort::Virtio, vec![disk.clone()]);
            let line =
                line(&Machine { kind: kind.into(), port, disks, entropy: true, ..machine() });
            for part in [
                &format!("-M {kind} -global virtio-mmio.force-legacy=false -accel"),
                "-device virtio-serial-device,max_ports=1 -device virtconsole",
                "-device isa-serial,index=1,chardev=log",
                "-device virtio-blk-device,drive=disk0,serial=disk0,num-queues=1,rerror",
                "-device virtio-rng-device",
            ] {
                assert!(line.contains(part), "{part}: {line}");
            }
            assert!(!line.contains("pci") && !line.contains("-serial chardev:log"), "{line}");
        }
        assert_eq!(Bus::of("microvm2"), Bus::Pci);
    }

    #[test]
    fn counted_instructions_need_one_thread() {
        let accel = Accel::Tcg(Clock::Instructions);
        let counted = line(&Machine { accel, ..machine() });
        assert!(
            counted.contains("-accel tcg,thread=single -icount shift=0,sleep=off -cpu max,-x2apic")
        );
    }

    #[test]
    fn kvm_shows_the_hosts_cpu() {
        let kvm = Machine { accel: Accel::Kvm, ..machine() };
        assert!(line(&kvm).contains("-accel kvm -cpu host"));
        let named = Machine { cpu: Some("EPYC-v3".into()), ..kvm };
        assert!(line(&named).contains("-accel kvm -cpu EPYC-v3"));
    }

    #[test]
    fn a_terminal_gets_its_own_keys() {
        let console = Console::Terminal("dir/end".into());
        let terminal = line(&Machine { console, ..machine() });
        assert!(terminal.contains("stdio,id=console,mux=on,signal=off"));
        assert!(terminal.contains("-chardev pipe,id=end,path=dir/end -mon chardev=end"));
    }

    #[test]
    fn control_needs_a_socket() {
        let controlled = line(&Machine { control: Some(7), ..machine() });
        let words = "-chardev socket,id=control,fd=7 -mon chardev=control,mode=control";
        assert!(controlled.contains(words), "{controlled}");
    }

    #[test]
    fn versions_of_several_builds() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright";
        assert_eq!(parse_version(debian), Some(Version { major: 7, minor: 2 }));
        let newest = "QEMU emulator version 10.0.13\n";
        assert_eq!(parse_version(newest), Some(Version { major: 10, minor: 0 }));
        assert_eq!(parse_version("ls (GNU coreutils) 9.1"), None);
    }

    #[test]
    fn harmless_warnings_are_dropped() {
        let harmless = "qemu-system-x86_64: warning: TCG doesn't support requested feature: \
                        CPUID.01H:ECX.pcid [bit 17]";
        assert!(!worth_showing(harmless));
        assert!(!worth_showing("qemu-system-x86_64: terminating on signal 15 from pid 7 (roost)"));
        assert!(worth_showing("qemu-system-x86_64: could not load kernel"));
    }

    #[test]
    fn programs_are_found_as_a_shell_does() {
        assert_eq!(on_path(OsStr::new("/bin/sh")), Some("/bin/sh".into()));
        assert!(on_path(OsStr::new("sh")).unwrap().ends_with("sh"));
        assert_eq!(on_path(OsStr::new("/nowhere/qemu")), None);
        let error = find(Some(Path::new("/nowhere/qemu"))).unwrap_err().to_string();
        assert_eq!(error, "QEMU not found at /nowhere/qemu: check --qemu");
    }
}
