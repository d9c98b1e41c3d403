//! Settles what a run is to be, from options or from a configuration file.

use crate::{
    accel,
    cli::{RunArgs, StatsTo},
    config,
    device::DevicePlan,
    disk::DiskPlan,
    memory::MIB,
    net::NetPlan,
};
use anyhow::{Context, Result};
use pv_abi::bundle::{
    Backend, ConsoleMode, ConsolePort, DEFAULT_WEIGHT, Pti, Restart, Siblings, Trace,
};
use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

/// Memory of a guest for which none is named, bytes.
pub const DEFAULT_MEMORY: u64 = 512 * MIB;
/// CPUs of the machine: L1 drives no more.
pub const MOST_CPUS: u32 = 64;
/// Most hardware threads of a core.
pub const MOST_THREADS: u32 = 8;
/// Virtual CPUs of a guest.
#[expect(clippy::cast_possible_truncation, reason = "it is 32")]
pub const MOST_VCPUS: u32 = pv_abi::ext::window::MAX_VCPUS as u32;

/// The longest time from one look at live counters to the next.
pub const MOST_SECONDS: u32 = 3600;

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The guests, one at least, in the order in which they start.
    pub guests: Vec<GuestPlan>,
    /// The machine that they run on.
    pub machine: MachinePlan,
    /// Who said so.
    pub origin: Origin,
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPlan {
    /// Its name.
    pub name: String,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initial ramdisk or module.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub append: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// Its share of the processors.
    pub weight: u32,
    /// What follows its end.
    pub restart: Restart,
    /// Who runs it.
    pub backend: Backend,
    /// Its disks, slot 0 first.
    pub disks: Vec<DiskPlan>,
    /// Its network cards, in the slots after.
    pub nets: Vec<NetPlan>,
    /// Its other virtio devices, in the slots after these.
    pub devices: Vec<DevicePlan>,
    /// Where its core file goes if it dies, if anywhere.
    pub core: Option<PathBuf>,
}

/// The machine that L1 runs on, and what is common to all guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachinePlan {
    /// Its memory in bytes, if not as much as its guests and L1 need.
    pub memory: Option<u64>,
    /// Its CPUs.
    pub cpus: u32,
    /// Hardware threads of each of its cores.
    pub threads: u32,
    /// What the threads of a core run.
    pub siblings: Siblings,
    /// Whether L1's memory is out of guests' page tables.
    pub pti: Pti,
    /// Which port guests' consoles share.
    pub port: ConsolePort,
    /// How QEMU runs it.
    pub accel: accel::Choice,
    /// QEMU's CPU model, if not the usual one.
    pub cpu: Option<String>,
    /// What time is made of.
    pub clock: accel::Clock,
    /// QEMU's machine type.
    pub kind: String,
    /// Where statistics go, if anywhere.
    pub stats: Option<StatsTo>,
    /// Seconds from one look at counters to the next while guests run, if that was said.
    pub stats_every: Option<u32>,
    /// When a guest's last exits go to L1's log.
    pub trace: Trace,
    /// How guests share the console, if not as it suits standard input.
    pub console: Option<ConsoleMode>,
}

/// Where a plan comes from: messages use the user's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Options.
    CommandLine,
    /// A configuration file.
    File(PathBuf),
}

impl Plan {
    /// The plan that the options tell.
    ///
    /// # Errors
    /// The configuration file cannot be used, or options contradict it.
    pub fn of(args: &RunArgs) -> Result<Self> {
        match (&args.config, &args.guest.kernel) {
            (Some(file), _) => config::read(file, args),
            (None, kernel) => {
                let kernel = kernel.as_deref().context("no kernel: name one with --kernel")?;
                Self::of_options(args, kernel)
            }
        }
    }

    fn of_options(args: &RunArgs, kernel: &Path) -> Result<Self> {
        let name = kernel.file_name().unwrap_or(kernel.as_os_str());
        let guest = GuestPlan {
            name: name.to_string_lossy().into_owned(),
            kernel: kernel.into(),
            initrd: args.guest.initrd.clone(),
            append: args.guest.append.clone().unwrap_or_default(),
            memory: args.guest.memory.map_or(DEFAULT_MEMORY, |size| size.0),
            vcpus: args.guest.vcpus.unwrap_or(1),
            weight: DEFAULT_WEIGHT,
            restart: args.guest.restart.map(Restart::from).unwrap_or_default(),
            backend: args.guest.backend.map(Backend::from).unwrap_or_default(),
            disks: args.guest.disk.clone(),
            nets: args.nets()?,
            devices: args.guest.device.clone(),
            core: args.core.clone(),
        };
        Ok(Self { guests: vec![guest], machine: args.machine(), origin: Origin::CommandLine })
    }

    /// Memory of all guests in bytes.
    #[must_use]
    pub fn guest_memory(&self) -> u64 {
        self.guests.iter().fold(0, |sum, guest| sum.saturating_add(guest.memory))
    }

    /// Seconds from one look at counters to the next while guests run; 0 if nobody looks.
    #[must_use]
    pub fn stats_every(&self) -> u32 {
        let live = u32::from(self.machine.stats == Some(StatsTo::Live));
        self.machine.stats_every.unwrap_or(live)
    }

    /// How the guests share the console, for a standard input that is a terminal or not.
    #[must_use]
    pub fn console(&self, terminal: bool) -> ConsoleMode {
        let usual = if terminal || self.guests.len() == 1 {
            ConsoleMode::Focus
        } else {
            ConsoleMode::Prefix
        };
        self.machine.console.unwrap_or(usual)
    }
}

impl Origin {
    /// A setting as the user writes it, given its name: `--memory` or `memory`.
    #[must_use]
    pub fn setting(&self, name: &str) -> String {
        match self {
            Self::CommandLine => format!("--{name}"),
            Self::File(_) => format!("`{name}`"),
        }
    }

    /// A complaint about `guest`, with what it takes to find it.
    #[must_use]
    pub fn about(&self, guest: &GuestPlan, complaint: impl Display) -> anyhow::Error {
        match self {
            Self::CommandLine => anyhow::anyhow!("{complaint:#}"),
            Self::File(file) => {
                anyhow::anyhow!("{}: guest '{}': {complaint:#}", file.display(), guest.name)
            }
        }
    }

    /// A complaint about the machine.
    #[must_use]
    pub fn about_machine(&self, complaint: impl Display) -> anyhow::Error {
        match self {
            Self::CommandLine => anyhow::anyhow!("{complaint:#}"),
            Self::File(file) => anyhow::anyhow!("{}: {complaint:#}", file.display()),
        }
    }
}
