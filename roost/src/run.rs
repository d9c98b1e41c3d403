//! `roost run`: checks everything first, then boots L1 with its guests.

use crate::{
    accel::{self, Clock, Kvm},
    bundle::{Contents, GuestContents, Payload},
    cli::{RunArgs, StatsTo},
    control::{Control, Inherited},
    device, disk,
    folder::Folder,
    images::Images,
    kernel::Kernel,
    live::{Live, Style},
    log::Log,
    memory::{self, mib},
    network,
    outcome::{Evidence, Outcome, SilentEnd},
    plan::Plan,
    preflight::{self, GuestFiles},
    process, progress,
    qemu::{self, Console, Machine},
    qmp::EventPipes,
    stats::Stats,
    terminal,
    watch::{Duties, Watcher},
};
use anyhow::{Context, Result, bail};
use pv_abi::bundle::Disk;
use std::{
    fs::{self, File},
    io::{self, BufWriter, IsTerminal},
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

/// The guest's clock at start when instructions are counted, so that runs repeat exactly.
const COUNTED_WALL_SECONDS: u64 = 1_767_225_600;

/// Runs guests and says how it ended.
///
/// # Errors
/// Something is wrong before the start; one line says what and what to do.
pub fn run(args: &RunArgs) -> Result<Outcome> {
    let plan = Plan::of(args)?;
    let guests = preflight::check(&plan)?;
    let disks = disk::check(&plan)?;
    let cards = network::check(&plan)?;
    let images = Images::find();
    let l1 = images.l1()?;
    let qemu = qemu::find(args.qemu.as_deref())?;
    qemu::version(&qemu)?;
    disk::try_all(&disks.machine, &qemu)?;
    let accel = accel::settle(plan.machine.accel, plan.machine.clock, || Kvm::probe(&qemu))?;
    let folder = Folder::create(&plan, args.l1_log.as_deref())?;
    // As late as can be: it says what time it is.
    let contents = contents(&plan, guests, disks.guests, &images)?;
    let bundle = write_bundle(&contents, &folder.bundle())?;
    let machine = Machine {
        kind: plan.machine.kind.clone(),
        accel,
        cpu: plan.machine.cpu.clone(),
        cpus: plan.machine.cpus,
        threads: plan.machine.threads,
        memory: preflight::machine_memory(&plan, bundle)?,
        l1,
        bundle: folder.bundle(),
        log: folder.log(),
        console: Console::Plain,
        control: None,
        disks: disks.machine,
        cards,
        entropy: device::any_entropy(&plan),
        port: plan.machine.port,
    };
    boot(args, &plan, &qemu, machine, folder)
}

/// Writes the boot module to the file of `--pack` and prints the memory that L1's machine needs.
///
/// # Errors
/// As for [`run`], or the file cannot be written.
pub fn pack(args: &RunArgs) -> Result<()> {
    let plan = Plan::of(args)?;
    if let Some(guest) = plan.guests.iter().find(|guest| guest.core.is_some()) {
        let why = "`core` cannot be used with --pack: no other machine monitor is asked for memory";
        return Err(plan.origin.about(guest, why));
    }
    network::check_for_elsewhere(&plan, "--pack")?;
    let disks = disk::check_for_elsewhere(&plan)?;
    let guests = preflight::check(&plan)?;
    let contents = contents(&plan, guests, disks, &Images::find())?;
    let to = args.pack.as_deref().unwrap_or(Path::new(""));
    let bundle = write_bundle(&contents, to)?;
    println!("{}", preflight::machine_memory(&plan, bundle)? / memory::MIB);
    Ok(())
}

/// What goes into the boot module, for guests that start now.
///
/// # Errors
/// The shim is missing, or a guest cannot have a device.
pub fn contents(
    plan: &Plan,
    files: Vec<GuestFiles>,
    disks: Vec<Vec<Disk>>,
    images: &Images,
) -> Result<Contents> {
    device::check(plan, &files)?;
    let mut guests = Vec::new();
    for ((guest, files), disks) in plan.guests.iter().zip(files).zip(disks) {
        let payload = match files.kernel {
            Kernel::Native(program) => Payload::Native(program),
            Kernel::Stock => Payload::Stock { shim: images.shim()?, kernel: files.kernel_file },
        };
        guests.push(GuestContents {
            name: guest.name.clone(),
            payload,
            initrd: files.initrd,
            cmdline: guest.append.clone(),
            memory: guest.memory,
            vcpus: guest.vcpus,
            backend: guest.backend,
            weight: guest.weight,
            restart: guest.restart,
            core: guest.core.is_some(),
            disks,
            cards: network::cards(guest),
            devices: device::describe(guest),
        });
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Contents {
        guests,
        networks: network::describe(plan),
        stats: plan.machine.stats.is_some(),
        stats_every: plan.stats_every(),
        trace: plan.machine.trace,
        console: plan.console(io::stdin().is_terminal()),
        siblings: plan.machine.siblings,
        pti: plan.machine.pti,
        port: plan.machine.port,
        wall_seconds: match plan.machine.clock {
            Clock::Instructions => COUNTED_WALL_SECONDS,
            // To the nearest second.
            Clock::Host => (now + Duration::from_millis(500)).as_secs(),
        },
    })
}

/// Writes the boot module and returns its length.
///
/// # Errors
/// As for [`Contents::write`].
pub fn write_bundle(contents: &Contents, to: &Path) -> Result<u64> {
    let bar = progress::bytes("packing", contents.file_bytes());
    let file = File::create(to).context("cannot write the boot module")?;
    let bytes = contents.write(&mut BufWriter::new(file), |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    Ok(bytes)
}

/// Starts QEMU, waits for its end and tells the user what they should know.
fn boot(
    args: &RunArgs,
    plan: &Plan,
    qemu: &Path,
    mut machine: Machine,
    folder: Folder,
) -> Result<Outcome> {
    let events = match io::stdin().is_terminal() {
        true => Some(EventPipes::create(folder.path())?),
        false => None,
    };
    if let Some(events) = &events {
        let others =
            if plan.guests.len() > 1 { "Ctrl-] ? shows how to reach the others; " } else { "" };
        eprintln!("roost: Ctrl-C goes to the guest; {others}Ctrl-a x quits");
        machine.console = Console::Terminal(events.base().into());
    }
    let (watcher, socket) = watch(plan, &folder)?;
    machine.control = socket.as_ref().map(Inherited::number);
    if args.verbose {
        explain(qemu, &machine, plan);
    }
    let mut command = Command::new(qemu);
    command.args(machine.arguments());
    let limit = args.timeout.map(Duration::from_secs);
    let restore = terminal::Restore::new();
    let ended = process::supervise(command, limit, qemu::worth_showing)?;
    drop(restore);
    // With this end closed, nobody waits for a QEMU that is gone.
    drop(socket);
    let words = watcher.map(Watcher::end).unwrap_or_default();

    let log = Log::read(&machine.log).unwrap_or_default();
    // Without a terminal there is no key to quit with.
    let reset = events.is_none_or(EventPipes::machine_reset);
    let silent_end = if reset { SilentEnd::Reset } else { SilentEnd::Quit };
    let outcome = Outcome::of(ended, Evidence { l1_spoke: log.spoke, silent_end });
    report(plan, &outcome, &log, &words, folder);
    Ok(outcome)
}

/// Somebody to watch L1's log, and QEMU's end of the way to it, if there is anything to watch for.
fn watch(plan: &Plan, folder: &Folder) -> Result<(Option<Watcher>, Option<Inherited>)> {
    let style = if io::stderr().is_terminal() { Style::Screen } else { Style::Lines };
    let live = (plan.stats_every() > 0).then(|| Live::new(style));
    let cores: Vec<_> = plan.guests.iter().map(|guest| guest.core.clone()).collect();
    let wants_core = cores.iter().any(Option::is_some);
    if live.is_none() && !wants_core {
        return Ok((None, None));
    }
    let (control, socket) = match wants_core {
        true => Control::pair().map(|(ours, theirs)| (Some(ours), Some(theirs)))?,
        false => (None, None),
    };
    let duties =
        Duties { log: folder.log(), live, cores, control, folder: folder.path().to_owned() };
    Ok((Some(Watcher::start(duties)?), socket))
}

fn explain(qemu: &Path, machine: &Machine, plan: &Plan) {
    let guests: String =
        plan.guests.iter().map(|guest| format!("guest {} + ", mib(guest.memory))).collect();
    let l1 = mib(machine.memory - plan.guest_memory());
    eprintln!("roost: memory {} = {guests}L1 {l1}", mib(machine.memory));
    let arguments = machine.arguments();
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    eprintln!("roost: {} {}", qemu.display(), words.join(" "));
}

fn report(plan: &Plan, outcome: &Outcome, log: &Log, words: &[String], folder: Folder) {
    for line in log.reports.iter().chain(words) {
        eprintln!("roost: {line}");
    }
    if let Some(to) = &plan.machine.stats
        && let Err(why) = show_stats(to, log.stats.as_deref())
    {
        eprintln!("roost: {why:#}");
    }
    if let Some(message) = outcome.message() {
        eprintln!("roost: {message}");
    }
    if outcome.is_failure() || !log.traced.is_empty() {
        let file = folder.keep_log();
        if !log.traced.is_empty() {
            let names = log.traced.join("', '");
            eprintln!("roost: the last exits of '{names}' are the lines with @trace of L1's log");
        }
        eprintln!("roost: L1's log is in {}", file.display());
    }
}

fn show_stats(to: &StatsTo, json: Option<&str>) -> Result<()> {
    let Some(json) = json else { bail!("L1 gave no statistics: it did not get to a guest's end") };
    let stats = Stats::parse(json)?;
    match to {
        StatsTo::Table | StatsTo::Live => eprint!("{stats}"),
        StatsTo::Json(file) => fs::write(file, format!("{json}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?,
    }
    Ok(())
}
