//! Defines the command line.

mod choices;

pub use choices::{
    BackendChoice, ConsoleChoice, PortChoice, PtiChoice, RestartChoice, SiblingsChoice, StatsTo,
    TraceChoice,
};

use crate::{
    accel::{self, Clock},
    device::DevicePlan,
    disk::DiskPlan,
    memory::{Size, parse_size},
    net::{Forward, NetOption, NetPlan, Network},
    plan::{MOST_CPUS, MOST_SECONDS, MOST_THREADS, MOST_VCPUS, MachinePlan},
};
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint, value_parser};
use pv_abi::bundle::{ConsoleMode, ConsolePort, Pti, Siblings, Trace};
use std::{path::PathBuf, str::FromStr};

/// Runs paravirtual guests on machines that offer no VMX or SVM.
#[derive(Debug, Parser)]
#[command(name = "roost", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot guests; their console is on standard input and output
    #[command(after_help = RUN_STATUS)]
    Run(Box<RunArgs>),
    /// Say whether this machine can run Roost, and why not
    #[command(after_help = "Exit status: 0 it can, 1 it cannot.")]
    Check(CheckArgs),
    /// Write an image from which a machine boots L1 with guests, by BIOS or UEFI; needs no root
    Image(Box<ImageArgs>),
    /// Have the boot menu of this machine start L1, with the machine's own system as its guest
    #[command(after_help = INSTALL)]
    Install(InstallArgs),
    /// Write an initial ramdisk (newc cpio); needs no root
    Initrd(InitrdArgs),
    /// Run random programs against the shadow MMU and judge every access
    #[command(after_help = STRESS_STATUS)]
    MmuStress(MmuStressArgs),
}

const INSTALL: &str = "\
Without --apply or --undo it only says what it would write. docs/install.md says more.
`grub-reboot roost` chooses the entry for the next start alone.";

const STRESS_STATUS: &str = "\
Exit status: 0 every access was right, 1 a rule was broken (it is named), 2 impossible options.
The rules are in docs/mmu-stress.md.";

const RUN_STATUS: &str = "\
Exit status:
  0    the guest powered off (or asked for a restart, which ends it too without --restart)
  2    something was wrong before the start
  3    the guest died or could not be started
  4    L1 or QEMU failed
  124  the time limit passed
  128+n  signal n ended the run";

/// A guest, where no file describes several.
#[derive(Clone, Debug, Default, Args)]
pub struct GuestArgs {
    /// Kernel: a stock x86-64 Linux with Xen PV support, or an ELF that speaks the native ABI
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "config",
        value_hint = ValueHint::FilePath
    )]
    pub kernel: Option<PathBuf>,
    /// Initial ramdisk, or the module of a native guest
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// Guest memory, e.g. 512M or 2G; a plain number is MiB [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<Size>,
    /// Virtual CPUs of the guest [default: 1]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=MOST_VCPUS.into()))]
    pub vcpus: Option<u32>,
    /// After which ends the guest starts again, in the same run [default: never]
    #[arg(long, value_enum)]
    pub restart: Option<RestartChoice>,
    /// Who runs the guest [default: auto]
    #[arg(long, value_enum)]
    pub backend: Option<BackendChoice>,
    /// A disk of the guest: a raw or qcow2 image, or (with `image` and --pack) a disk of the machine,
    /// `disk=serial:NAME`. `ro`: it may only be read; `part`: one partition of it
    #[arg(long, value_name = "FILE[,ro][,name=NAME][,part=PART]")]
    pub disk: Vec<DiskPlan>,
    /// Another virtio device of a native guest: random bytes, a port to its console, or sockets to other
    /// guests, among which its address is CID (3 or more). Several get slots in their order, after disks and
    /// network cards
    #[arg(long, value_name = "entropy|console|vsock=CID")]
    pub device: Vec<DevicePlan>,
}

/// `roost run`.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// Its guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// Run the guests that FILE describes (docs/running.md), in place of --kernel and what goes with it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// A network card of the guest: behind QEMU's user networking, on a bridge of this machine, or on a
    /// network that goes nowhere, by a name of your choice. OPTIONS are `,mac=ADDRESS`, `,ip=ADDRESS` (the only one it may send by), `,rate=BITS` in a second
    /// (`100M`) and `,mtu=BYTES`. Several get slots in their order, after disks [default: none]
    #[arg(long, value_name = "none|user|bridge=NAME|card[=ADDRESS]|NAME[OPTIONS]")]
    pub net: Vec<NetOption>,
    /// A port of this machine's 127.0.0.1 that leads to the guest, with `--net user`
    #[arg(long, value_name = "[tcp:|udp:]HOSTPORT[:GUESTPORT]", requires = "net")]
    pub forward: Vec<Forward>,
    /// CPUs of the machine that L1 runs on [default: 1]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=MOST_CPUS.into()))]
    pub cpus: Option<u32>,
    /// Hardware threads of each core of that machine [default: 1]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=MOST_THREADS.into()))]
    pub threads: Option<u32>,
    /// What the hardware threads of a core run [default: any]
    #[arg(long, value_enum)]
    pub siblings: Option<SiblingsChoice>,
    /// Whether L1's memory is out of guests' page tables: isolation costs two loads of CR3 each time a guest
    /// is left [default: on]
    #[arg(long, value_enum)]
    pub pti: Option<PtiChoice>,
    /// Which port of the machine guests' consoles share [default: serial]
    #[arg(long, value_enum)]
    pub console_port: Option<PortChoice>,
    /// How several guests share the console [default: focus at a terminal, else prefix]
    #[arg(long, value_enum)]
    pub console: Option<ConsoleChoice>,
    /// How QEMU runs L1; auto takes KVM where it works [default: auto]
    #[arg(long, value_enum)]
    pub accel: Option<accel::Choice>,
    /// QEMU's CPU model [default: max with TCG, host with KVM]
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,
    /// Count instructions: time goes by executed instructions and runs repeat exactly (TCG only)
    #[arg(long)]
    pub icount: bool,
    /// Show exit counts and times after the run, or write them to FILE as JSON; `live` also shows
    /// counts each second while guests run
    #[arg(
        long,
        value_name = "live|json:FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "table"
    )]
    pub stats: Option<StatsTo>,
    /// Show how often guests are left while they run, every so many seconds
    #[arg(long, value_name = "SECS", value_parser = value_parser!(u32).range(1..=MOST_SECONDS.into()))]
    pub stats_every: Option<u32>,
    /// Remember each vCPU's last exits; they go to L1's log when a guest dies, or at any end
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "death")]
    pub trace: Option<TraceChoice>,
    /// Write the guest's memory and registers to FILE (ELF, for gdb and crash) if it dies
    #[arg(long, value_name = "FILE", conflicts_with = "pack", value_hint = ValueHint::FilePath)]
    pub core: Option<PathBuf>,
    /// End the run after this many seconds, with status 124
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
    /// Keep L1's log in FILE [default: a temporary file, kept on failure]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub l1_log: Option<PathBuf>,
    /// QEMU to use [default: qemu-system-x86_64 from PATH]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    pub qemu: Option<PathBuf>,
    /// QEMU machine type, such as q35, pc, or microvm, whose devices are not on PCI [default: q35]
    #[arg(long, value_name = "TYPE")]
    pub machine: Option<String>,
    /// Start nothing: write L1's boot module to FILE, for another machine monitor, and print the
    /// memory that its machine needs, in MiB
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub pack: Option<PathBuf>,
    /// Show how memory is divided and QEMU's command line before the start
    #[arg(long, short)]
    pub verbose: bool,
}

impl RunArgs {
    /// The network cards that the options tell.
    ///
    /// # Errors
    /// There is none that ports could be forwarded to.
    pub fn nets(&self) -> Result<Vec<NetPlan>> {
        let mut nets: Vec<_> = self.net.iter().filter_map(NetOption::card).cloned().collect();
        if !self.forward.is_empty() {
            let user = nets.iter_mut().find(|net| net.network == Network::User);
            let user = user.context("--forward needs a network card of --net user")?;
            user.forwards.clone_from(&self.forward);
        }
        Ok(nets)
    }

    /// The machine that the options tell.
    #[must_use]
    pub fn machine(&self) -> MachinePlan {
        MachinePlan {
            memory: None,
            cpus: self.cpus.unwrap_or(1),
            threads: self.threads.unwrap_or(1),
            siblings: self.siblings.map(Siblings::from).unwrap_or_default(),
            pti: self.pti.map(Pti::from).unwrap_or_default(),
            port: self.console_port.map(ConsolePort::from).unwrap_or_default(),
            accel: self.accel.unwrap_or_default(),
            cpu: self.cpu.clone(),
            clock: if self.icount { Clock::Instructions } else { Clock::Host },
            kind: self.machine.clone().unwrap_or_else(|| "q35".into()),
            stats: self.stats.clone(),
            stats_every: self.stats_every,
            trace: self.trace.map(Trace::from).unwrap_or_default(),
            console: self.console.map(ConsoleMode::from),
        }
    }
}

/// `roost image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// File to write; its ending tells the format: .iso (a CD, and a disk as it is), .raw or .qcow2
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// Its guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// Pack the guests that FILE describes (docs/running.md), in place of --kernel and what goes with it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// A network card of the guest, on what the machine's own virtio card leads to: the one with ADDRESS, or the first
    /// that there is. OPTIONS are those of `roost run` [default: none]
    #[arg(long, value_name = "none|card[=ADDRESS][OPTIONS]", conflicts_with = "config")]
    pub net: Vec<NetOption>,
    /// How several guests share the console [default: focus]
    #[arg(long, value_enum)]
    pub console: Option<ConsoleChoice>,
    /// What the hardware threads of a core run [default: any]
    #[arg(long, value_enum)]
    pub siblings: Option<SiblingsChoice>,
    /// Whether L1's memory is out of guests' page tables [default: on]
    #[arg(long, value_enum)]
    pub pti: Option<PtiChoice>,
    /// Which port of the machine guests' consoles share [default: serial]
    #[arg(long, value_enum)]
    pub console_port: Option<PortChoice>,
}

impl ImageArgs {
    /// A run of the same guests.
    #[must_use]
    pub fn as_run(&self) -> RunArgs {
        RunArgs {
            guest: self.guest.clone(),
            config: self.config.clone(),
            net: self.net.clone(),
            console: self.console,
            siblings: self.siblings,
            pti: self.pti,
            console_port: self.console_port,
            ..RunArgs::default()
        }
    }
}

/// `roost check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print the findings as JSON on standard output
    #[arg(long)]
    pub json: bool,
    /// QEMU to look at [default: qemu-system-x86_64 from PATH]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    pub qemu: Option<PathBuf>,
}

/// `roost install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Write the files and have GRUB's menu made anew
    #[arg(long)]
    pub apply: bool,
    /// Remove them, and have the menu made anew
    #[arg(long, conflicts_with = "apply")]
    pub undo: bool,
    /// The system's root folder; elsewhere than / the menu is left as it is
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
    pub root: PathBuf,
    /// Memory of the guest [default: what L1 leaves of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<Size>,
    /// Virtual CPUs of the guest [default: as many as the machine has]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=MOST_VCPUS.into()))]
    pub vcpus: Option<u32>,
}

/// `roost initrd`.
#[derive(Debug, Args)]
pub struct InitrdArgs {
    /// File to write
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// Add a static busybox, its applets and an /init that starts a shell [default PATH: busybox]
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "busybox")]
    pub busybox: Option<PathBuf>,
    /// Add a file; MODE is octal, by default 755 if SRC may be executed, else 644
    #[arg(long, value_name = "SRC=DST[:MODE]")]
    pub add: Vec<Addition>,
    /// Add SRC as /init
    #[arg(long, value_name = "SRC", value_hint = ValueHint::FilePath)]
    pub init: Option<PathBuf>,
    /// Add everything in DIR, placed at the root
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Vec<PathBuf>,
}

/// `roost mmu-stress`.
#[derive(Debug, Args)]
pub struct MmuStressArgs {
    /// Seed of the first round; further rounds take the numbers that follow
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Run for this long
    #[arg(long, value_name = "SECS", default_value_t = 10)]
    pub seconds: u64,
    /// vCPUs of all VMs together, each a thread [default: one per CPU]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// VMs that run side by side
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub vms: usize,
    /// How the MMU learns of stores to tables [default: even seeds unsync, odd seeds notes]
    #[arg(long, value_enum)]
    pub mode: Option<StressMode>,
    /// Steps of each vCPU in a round
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub steps: u64,
    /// The MMU to stress
    #[arg(long, value_enum, default_value_t = StressMmu::Roost)]
    pub mmu: StressMmu,
    /// Replay the round of --seed in one thread, and shrink it to the steps that matter
    #[arg(long, conflicts_with = "seconds")]
    pub replay: bool,
    /// Plant a bug in the MMU, to see that it is found; a wrong name lists all (builds with the
    /// feature `mutants`)
    #[arg(long, value_name = "NAME")]
    pub mutant: Option<String>,
    /// Let one in N allocations of the MMU fail (builds with the feature `mutants`)
    #[arg(long, value_name = "N")]
    pub fail_allocations: Option<u32>,
    /// Write what was done and found to FILE as JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub json: Option<PathBuf>,
}

/// How an MMU under stress learns of stores to tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StressMode {
    /// The guest announces the stores it makes past its own mappings
    Notes,
    /// By its own means
    Unsync,
}

/// MMUs that can be stressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StressMmu {
    /// The one of this project
    Roost,
    /// The plain one that shows how to connect another
    Simple,
}

/// One file to add to an initial ramdisk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    /// File on this machine.
    pub source: PathBuf,
    /// Path in the ramdisk.
    pub target: PathBuf,
    /// Permission bits, if not taken from the file.
    pub mode: Option<u32>,
}

impl FromStr for Addition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((source, rest)) = text.split_once('=') else {
            return Err("write SRC=DST or SRC=DST:MODE".into());
        };
        let (target, mode) = match rest.rsplit_once(':') {
            Some((target, mode)) => (target, Some(parse_mode(mode)?)),
            None => (rest, None),
        };
        if source.is_empty() || target.is_empty() {
            return Err("SRC and DST must not be empty".into());
        }
        Ok(Self { source: source.into(), target: target.into(), mode })
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("`{text}` is no octal mode such as 755"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    fn run(args: &[&str]) -> RunArgs {
        let all = ["roost", "run", "--kernel", "k"].iter().chain(args);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Run(run) => *run,
            other => panic!("parsed as {other:?}"),
        }
    }

    #[test]
    fn stats_take_an_optional_file() {
        assert_eq!(run(&[]).stats, None);
        assert_eq!(run(&["--stats"]).stats, Some(StatsTo::Table));
        assert_eq!(run(&["--stats=json:a:b"]).stats, Some(StatsTo::Json("a:b".into())));
        assert_eq!(run(&["--stats=live"]).stats, Some(StatsTo::Live));
        assert!("json:".parse::<StatsTo>().is_err());
        assert!("csv:x".parse::<StatsTo>().is_err());
    }

    #[test]
    fn a_trace_takes_an_optional_word() {
        assert_eq!(run(&[]).trace, None);
        assert_eq!(run(&["--trace"]).trace, Some(TraceChoice::Death));
        assert_eq!(run(&["--trace=always"]).trace, Some(TraceChoice::Always));
    }

    #[test]
    fn append_may_start_with_a_hyphen() {
        assert_eq!(run(&["--append", "--x y"]).guest.append.unwrap(), "--x y");
    }

    #[test]
    fn additions_carry_a_mode_or_not() {
        let add = |text: &str| text.parse::<Addition>();
        let plain = Addition { source: "a".into(), target: "/b".into(), mode: None };
        assert_eq!(add("a=/b"), Ok(plain.clone()));
        assert_eq!(add("a=/b:600"), Ok(Addition { mode: Some(0o600), ..plain }));
        assert!(add("a").is_err());
        assert!(add("=b").is_err());
        assert!(add("a=").is_err());
        assert!(add("a=b:9").unwrap_err().contains("octal"));
        assert!(add("a=b:17777").is_err());
    }
}
