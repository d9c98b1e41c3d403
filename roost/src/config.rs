//! Reads a configuration file: a machine and its guests (docs/running.md).
//! Input: a file the user named; any bytes.

use crate::{
    accel::{self, Clock},
    cli::{
        BackendChoice, ConsoleChoice, PortChoice, PtiChoice, RestartChoice, RunArgs,
        SiblingsChoice, StatsTo,
    },
    device::DevicePlan,
    disk::{self, Access, DiskPlan, Source as DiskSource},
    files,
    memory::Size,
    net::{self, Forward, Mac, Mtu, NetPlan, Network, Rate},
    plan::{
        DEFAULT_MEMORY, GuestPlan, MOST_CPUS, MOST_SECONDS, MOST_THREADS, MOST_VCPUS, MachinePlan,
        Origin, Plan,
    },
};
use anyhow::{Result, anyhow, bail, ensure};
use pv_abi::bundle::{
    Backend, ConsoleMode, ConsolePort, DEFAULT_WEIGHT, MTUS, MachineDisk, Partition, Pti, Restart,
    Siblings, Trace, WEIGHTS,
};
use serde::Deserialize;
use std::{
    collections::HashMap,
    net::Ipv4Addr,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};
use toml::Spanned;

/// The longest name of a guest, bytes.
const LONGEST_NAME: usize = 32;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    machine_memory: Option<Size>,
    cpus: Option<Spanned<Bounded<1, MOST_CPUS>>>,
    threads: Option<Spanned<Bounded<1, MOST_THREADS>>>,
    siblings: Option<Spanned<SiblingsChoice>>,
    pti: Option<Spanned<PtiChoice>>,
    console_port: Option<Spanned<PortChoice>>,
    accel: Option<Spanned<accel::Choice>>,
    cpu: Option<Spanned<String>>,
    icount: Option<Spanned<bool>>,
    machine: Option<Spanned<String>>,
    stats: Option<Spanned<Stats>>,
    stats_every: Option<Spanned<Bounded<1, MOST_SECONDS>>>,
    trace: Option<Spanned<TraceWord>>,
    console: Option<Spanned<ConsoleChoice>>,
    #[serde(default)]
    guest: Vec<Guest>,
}

/// A `[[guest]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Guest {
    name: Spanned<Name>,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    #[serde(default)]
    append: String,
    memory: Option<Size>,
    vcpus: Option<Bounded<1, MOST_VCPUS>>,
    weight: Option<Bounded<{ *WEIGHTS.start() }, { *WEIGHTS.end() }>>,
    restart: Option<RestartChoice>,
    backend: Option<BackendChoice>,
    core: Option<PathBuf>,
    #[serde(default)]
    disk: Vec<GuestDisk>,
    #[serde(default)]
    net: Vec<GuestNet>,
    #[serde(default)]
    device: Vec<Word<DevicePlan>>,
}

/// A `[[guest.net]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct GuestNet {
    network: Word<Network>,
    mac: Option<Word<Mac>>,
    ip: Option<Ip>,
    rate: Option<Word<Rate>>,
    mtu: Option<Bounded<{ *MTUS.start() as u32 }, { *MTUS.end() as u32 }>>,
    #[serde(default)]
    forward: Vec<Word<Forward>>,
}

/// An address of a guest.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Ip(Ipv4Addr);

impl TryFrom<String> for Ip {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        net::parse_ip(&text).map(Self)
    }
}

/// What is written as an option has it.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String", bound(deserialize = "T: FromStr<Err = String>"))]
struct Word<T>(T);

impl<T: FromStr<Err = String>> TryFrom<String> for Word<T> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

/// A `[[guest.disk]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct GuestDisk {
    file: Option<PathBuf>,
    disk: Option<MachineDiskName>,
    partition: Option<PartitionName>,
    #[serde(default)]
    read_only: bool,
    name: Option<DiskName>,
}

impl GuestNet {
    fn plan(self) -> NetPlan {
        NetPlan {
            network: self.network.0,
            mac: self.mac.map(|mac| mac.0),
            ip: self.ip.map(|ip| ip.0),
            rate: self.rate.map(|rate| rate.0),
            // It is within the bounds.
            mtu: self.mtu.and_then(|mtu| u16::try_from(mtu.0).ok()).map(Mtu),
            forwards: self.forward.into_iter().map(|forward| forward.0).collect(),
        }
    }
}

/// A disk's name.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct DiskName(String);

impl TryFrom<String> for DiskName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        disk::check_name(&name).map(Self)
    }
}

/// A disk of the machine.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct MachineDiskName(MachineDisk);

impl TryFrom<String> for MachineDiskName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        disk::parse_machine_disk(&text).map(Self)
    }
}

/// A partition.
#[derive(Debug, Deserialize)]
#[serde(try_from = "toml::Value")]
struct PartitionName(Partition);

impl TryFrom<toml::Value> for PartitionName {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        let text = match value {
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::String(text) => text,
            _ => return Err("write a partition's number, its label or its GUID".into()),
        };
        disk::parse_partition(&text).map(Self)
    }
}

/// A number from `LOW` to `HIGH`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
struct Bounded<const LOW: u32, const HIGH: u32>(u32);

impl<const LOW: u32, const HIGH: u32> TryFrom<i64> for Bounded<LOW, HIGH> {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        let fits = u32::try_from(number).ok().filter(|number| (LOW..=HIGH).contains(number));
        fits.map(Self).ok_or_else(|| format!("{number} is out of range: use {LOW} to {HIGH}"))
    }
}

/// A guest's name: it appears in messages, before lines of output, and in statistics as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
struct Name(String);

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let plain = |byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
        if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(plain) {
            return Err(format!(
                "a name has 1 to {LONGEST_NAME} printable ASCII characters, no \" and no \\: \
                 choose another"
            ));
        }
        Ok(Self(name))
    }
}

/// Where statistics go.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Stats(StatsTo);

impl TryFrom<String> for Stats {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self).map_err(|_| "write \"table\", \"live\" or \"json:FILE\"")
    }
}

/// When a guest's last exits go to L1's log.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "toml::Value")]
struct TraceWord(Trace);

impl TryFrom<toml::Value> for TraceWord {
    type Error = &'static str;

    fn try_from(value: toml::Value) -> Result<Self, Self::Error> {
        match value {
            toml::Value::Boolean(false) => Ok(Self(Trace::Off)),
            toml::Value::Boolean(true) => Ok(Self(Trace::Death)),
            toml::Value::String(word) if word == "always" => Ok(Self(Trace::Always)),
            _ => Err("write true, false or \"always\""),
        }
    }
}

/// The plan in `path`; options of `args` say what the file leaves open.
///
/// # Errors
/// The file is no configuration, or an option contradicts it. Files that it names are not looked at.
pub fn read(path: &Path, args: &RunArgs) -> Result<Plan> {
    let text = String::from_utf8(files::read("configuration", path)?)
        .map_err(|_| anyhow!("configuration {} is not text in UTF-8", path.display()))?;
    let source = Source { path, text: &text };
    let file: File = toml::from_str(&text).map_err(|error| source.complaint(&error))?;
    no_guest_options(args, path)?;
    let machine = source.machine(&file, args)?;
    let guests = source.guests(file.guest)?;
    Ok(Plan { guests, machine, origin: Origin::File(path.into()) })
}

/// What a `[[guest]]` says cannot be said for all.
fn no_guest_options(args: &RunArgs, path: &Path) -> Result<()> {
    let given = [
        ("kernel", args.guest.kernel.is_some()),
        ("initrd", args.guest.initrd.is_some()),
        ("append", args.guest.append.is_some()),
        ("memory", args.guest.memory.is_some()),
        ("vcpus", args.guest.vcpus.is_some()),
        ("restart", args.guest.restart.is_some()),
        ("backend", args.guest.backend.is_some()),
        ("core", args.core.is_some()),
        ("disk", !args.guest.disk.is_empty()),
        ("net", !args.net.is_empty()),
        ("forward", !args.forward.is_empty()),
    ];
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((name, _)) => bail!(
            "--{name} cannot be used with --config: set `{name}` of a [[guest]] in {}",
            path.display()
        ),
    }
}

/// A file's text, to say where in it something is.
#[derive(Clone, Copy)]
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        self.text.bytes().take(span.start).filter(|&byte| byte == b'\n').count() + 1
    }

    /// One line for what the parser found.
    fn complaint(&self, error: &toml::de::Error) -> anyhow::Error {
        let lines: Vec<_> = error.message().lines().map(str::trim).collect();
        let words = lines
            .join(", ")
            .replace("expected a sequence", "expected [[guest]] tables")
            .replace("expected i64", "expected a whole number");
        let shown = self.path.display();
        let Some(span) = error.span() else { return anyhow!("{shown}: {words}") };
        let line = self.line(&span);
        match self.text.lines().nth(line - 1).and_then(|text| text.split_once('=')) {
            Some((key, _)) => anyhow!("{shown} line {line} ({}): {words}", key.trim()),
            None => anyhow!("{shown} line {line}: {words}"),
        }
    }

    /// A path as the file means it.
    fn resolve(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    fn machine(&self, file: &File, args: &RunArgs) -> Result<MachinePlan> {
        let usual = args.machine();
        let stats = self.choose("stats", &file.stats, args.stats.is_some())?;
        let stats = stats.map(|Stats(to)| match to {
            StatsTo::Json(path) => StatsTo::Json(self.resolve(&path)),
            other => other,
        });
        let clock = self.choose("icount", &file.icount, args.icount)?;
        let clock = clock.map(|count| if count { Clock::Instructions } else { Clock::Host });
        let cpus = self.choose("cpus", &file.cpus, args.cpus.is_some())?;
        let threads = self.choose("threads", &file.threads, args.threads.is_some())?;
        let siblings = self.choose("siblings", &file.siblings, args.siblings.is_some())?;
        let pti = self.choose("pti", &file.pti, args.pti.is_some())?;
        let port = self.choose("console-port", &file.console_port, args.console_port.is_some())?;
        let accel = self.choose("accel", &file.accel, args.accel.is_some())?;
        let kind = self.choose("machine", &file.machine, args.machine.is_some())?;
        let every = self.choose("stats-every", &file.stats_every, args.stats_every.is_some())?;
        let trace = self.choose("trace", &file.trace, args.trace.is_some())?;
        let console = self.choose("console", &file.console, args.console.is_some())?;
        Ok(MachinePlan {
            memory: file.machine_memory.map(|size| size.0),
            cpus: cpus.map_or(usual.cpus, |cpus| cpus.0),
            threads: threads.map_or(usual.threads, |threads| threads.0),
            siblings: siblings.map_or(usual.siblings, Siblings::from),
            pti: pti.map_or(usual.pti, Pti::from),
            port: port.map_or(usual.port, ConsolePort::from),
            accel: accel.unwrap_or(usual.accel),
            cpu: self.choose("cpu", &file.cpu, args.cpu.is_some())?.or(usual.cpu),
            clock: clock.unwrap_or(usual.clock),
            kind: kind.unwrap_or(usual.kind),
            stats: stats.or(usual.stats),
            stats_every: every.map(|every| every.0).or(usual.stats_every),
            trace: trace.map_or(usual.trace, |trace| trace.0),
            console: console.map(ConsoleMode::from).or(usual.console),
        })
    }

    /// The value in the file; an option may only say what the file does not.
    fn choose<T: Clone>(
        &self,
        name: &str,
        value: &Option<Spanned<T>>,
        given: bool,
    ) -> Result<Option<T>> {
        let Some(value) = value else { return Ok(None) };
        ensure!(
            !given,
            "{} line {} sets `{name}`: drop --{name} or that line",
            self.path.display(),
            self.line(&value.span())
        );
        Ok(Some(value.get_ref().clone()))
    }

    fn guests(&self, guests: Vec<Guest>) -> Result<Vec<GuestPlan>> {
        let shown = self.path.display();
        ensure!(
            !guests.is_empty(),
            "{shown} has no guest: add a [[guest]] with a name and a kernel"
        );
        let mut lines = HashMap::new();
        for guest in &guests {
            let line = self.line(&guest.name.span());
            if let Some(first) = lines.insert(guest.name.get_ref(), line) {
                let Name(name) = guest.name.get_ref();
                bail!("{shown} line {line}: name '{name}' is that of line {first}: choose another");
            }
        }
        guests.into_iter().map(|guest| self.guest(guest)).collect()
    }

    fn guest(&self, guest: Guest) -> Result<GuestPlan> {
        let name = guest.name.into_inner().0;
        let disks = guest.disk.into_iter().map(|disk| self.disk(disk)).collect::<Result<_, _>>();
        let disks =
            disks.map_err(|why| anyhow!("{}: guest '{name}': {why}", self.path.display()))?;
        Ok(GuestPlan {
            name,
            kernel: self.resolve(&guest.kernel),
            initrd: guest.initrd.map(|path| self.resolve(&path)),
            append: guest.append,
            memory: guest.memory.map_or(DEFAULT_MEMORY, |size| size.0),
            vcpus: guest.vcpus.map_or(1, |vcpus| vcpus.0),
            weight: guest.weight.map_or(DEFAULT_WEIGHT, |weight| weight.0),
            restart: guest.restart.map(Restart::from).unwrap_or_default(),
            backend: guest.backend.map(Backend::from).unwrap_or_default(),
            disks,
            nets: guest.net.into_iter().map(GuestNet::plan).collect(),
            devices: guest.device.into_iter().map(|device| device.0).collect(),
            core: guest.core.map(|path| self.resolve(&path)),
        })
    }

    fn disk(&self, disk: GuestDisk) -> Result<DiskPlan, String> {
        let source = match (disk.file, disk.disk) {
            (Some(file), None) => DiskSource::File(self.resolve(&file)),
            (None, Some(machine)) => DiskSource::Machine(machine.0),
            _ => return Err("a disk has either `file` or `disk`: set one of them".into()),
        };
        let plan = DiskPlan {
            source,
            partition: disk.partition.map(|partition| partition.0),
            access: if disk.read_only { Access::Read } else { Access::Write },
            name: disk.name.map(|name| name.0),
        };
        plan.sensible()
    }
}
