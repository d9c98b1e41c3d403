//! `roost run`: checks everything first, then boots L1 with one guest.

use crate::{
    accel::{self, Kvm},
    bundle::{Contents, Payload},
    cli::{RunArgs, StatsTo},
    folder::Folder,
    images::Images,
    kernel::Kernel,
    log::Log,
    memory::{self, mib},
    outcome::{Evidence, Outcome, SilentEnd},
    preflight::{self, GuestFiles},
    process, progress,
    qemu::{self, Console, Machine},
    qmp::EventPipes,
    stats::Stats,
    terminal,
};
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    io::{self, BufWriter, IsTerminal},
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

/// The guest's clock at start when instructions are counted, so that runs repeat exactly.
const COUNTED_WALL_SECONDS: u64 = 1_767_225_600;

/// Runs a guest and says how it ended.
///
/// # Errors
/// Something is wrong before the start; one line says what and what to do.
pub fn run(args: &RunArgs) -> Result<Outcome> {
    let guest = preflight::check(args)?;
    let images = Images::find();
    let l1 = images.l1()?;
    let contents = contents(args, guest, &images)?;
    let qemu = qemu::find(args.qemu.as_deref())?;
    qemu::version(&qemu)?;
    let accel = accel::settle(args.accel, preflight::clock(args), || Kvm::probe(&qemu))?;
    let folder = Folder::create(args)?;
    let bundle = write_bundle(&contents, &folder.bundle())?;
    let machine = Machine {
        kind: args.machine.clone(),
        accel,
        cpu: args.cpu.clone(),
        cpus: args.l1_cpus,
        memory: contents.memory + memory::l1_need(contents.memory, bundle),
        l1,
        bundle: folder.bundle(),
        log: folder.log(),
        console: Console::Plain,
    };
    boot(args, &qemu, machine, folder)
}

/// Writes the boot module to the file of `--pack` and prints the memory that L1's machine needs.
///
/// # Errors
/// As for [`run`], or the file cannot be written.
pub fn pack(args: &RunArgs) -> Result<()> {
    let guest = preflight::check(args)?;
    let contents = contents(args, guest, &Images::find())?;
    let to = args.pack.as_deref().unwrap_or(Path::new(""));
    let bundle = write_bundle(&contents, to)?;
    println!("{}", (contents.memory + memory::l1_need(contents.memory, bundle)) / memory::MIB);
    Ok(())
}

fn contents(args: &RunArgs, guest: GuestFiles, images: &Images) -> Result<Contents> {
    let payload = match guest.kernel {
        Kernel::Native(program) => Payload::Native(program),
        Kernel::Stock => Payload::Stock { shim: images.shim()?, kernel: guest.kernel_file },
    };
    let name = args.kernel.file_name().unwrap_or(args.kernel.as_os_str());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Contents {
        name: name.to_string_lossy().into_owned(),
        payload,
        initrd: guest.initrd,
        cmdline: args.append.clone(),
        memory: args.memory.0,
        vcpus: args.cpus,
        backend: args.backend.into(),
        stats: args.stats.is_some(),
        wall_seconds: if args.icount { COUNTED_WALL_SECONDS } else { now.as_secs() },
    })
}

fn write_bundle(contents: &Contents, to: &Path) -> Result<u64> {
    let bar = progress::bytes("packing", contents.file_bytes());
    let file = File::create(to).context("cannot write the boot module")?;
    let bytes = contents.write(&mut BufWriter::new(file), |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    Ok(bytes)
}

/// Starts QEMU, waits for its end and tells the user what they should know.
fn boot(args: &RunArgs, qemu: &Path, mut machine: Machine, folder: Folder) -> Result<Outcome> {
    let events = match io::stdin().is_terminal() {
        true => Some(EventPipes::create(folder.path())?),
        false => None,
    };
    if let Some(events) = &events {
        eprintln!("roost: Ctrl-C goes to the guest; Ctrl-a x quits");
        machine.console = Console::Terminal(events.base().into());
    }
    if args.verbose {
        explain(qemu, &machine, args.memory.0);
    }
    let mut command = Command::new(qemu);
    command.args(machine.arguments());
    let limit = args.timeout.map(Duration::from_secs);
    let restore = terminal::Restore::new();
    let ended = process::supervise(command, limit, qemu::worth_showing)?;
    drop(restore);

    let log = Log::read(&machine.log).unwrap_or_default();
    // Without a terminal there is no key to quit with.
    let reset = events.is_none_or(EventPipes::machine_reset);
    let silent_end = if reset { SilentEnd::Reset } else { SilentEnd::Quit };
    let outcome = Outcome::of(ended, Evidence { l1_spoke: log.spoke, silent_end });
    report(args, &outcome, &log, folder);
    Ok(outcome)
}

fn explain(qemu: &Path, machine: &Machine, guest: u64) {
    let l1 = mib(machine.memory - guest);
    eprintln!("roost: memory {} = guest {} + L1 {l1}", mib(machine.memory), mib(guest));
    let arguments = machine.arguments();
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    eprintln!("roost: {} {}", qemu.display(), words.join(" "));
}

fn report(args: &RunArgs, outcome: &Outcome, log: &Log, folder: Folder) {
    for line in &log.reports {
        eprintln!("roost: {line}");
    }
    if let Some(to) = &args.stats
        && let Err(why) = show_stats(to, log.stats.as_deref())
    {
        eprintln!("roost: {why:#}");
    }
    if let Some(message) = outcome.message() {
        eprintln!("roost: {message}");
    }
    if outcome.is_failure() {
        eprintln!("roost: L1's log is in {}", folder.keep_log().display());
    }
}

fn show_stats(to: &StatsTo, json: Option<&str>) -> Result<()> {
    let Some(json) = json else { bail!("L1 gave no statistics: it did not get to a guest's end") };
    let stats = Stats::parse(json)?;
    match to {
        StatsTo::Table => eprint!("{stats}"),
        StatsTo::Json(file) => fs::write(file, format!("{json}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?,
    }
    Ok(())
}
