//! Runs the guest benchmark on its machines and keeps the logs.

use crate::cli::Cli;
use anyhow::{Context, Result, bail, ensure};
use bench_report::lines::Log;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Between two looks whether a run has ended.
const LOOK: Duration = Duration::from_millis(50);

/// The benchmark on the machine itself.
pub fn native(cli: &Cli) -> Result<Log> {
    if let Some(place) = &cli.native_log {
        return read(place);
    }
    let mut qemu = Command::new(&cli.qemu);
    // As `roost` has it.
    let cpu = format!("{},-x2apic", cli.cpu);
    qemu.args(["-M", "q35", "-cpu", &cpu, "-smp", "1"])
        .args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-m", &cli.memory.to_string()])
        .arg("-kernel")
        .arg(kernel(cli)?)
        .arg("-initrd")
        .arg(initrd(cli)?)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 tsc=reliable clocksource=tsc panic=-1 quiet {}",
            cli.guest_words()
        ));
    logged(cli, qemu, "native")
}

/// The benchmark in a guest of Roost.
pub fn guest(cli: &Cli) -> Result<Log> {
    match &cli.guest_log {
        Some(place) => read(place),
        None => logged(cli, roost(cli, &cli.guest_words(), "guest")?, "guest"),
    }
}

/// A run in which the guest reads L1's counters; an empty one if an earlier run was taken and no
/// earlier one of this kind.
pub fn counted(cli: &Cli) -> Result<Log> {
    match (&cli.counted_log, &cli.guest_log) {
        (Some(place), _) => read(place),
        (None, Some(_)) => Ok(Log::default()),
        (None, None) => {
            let words = format!("{} bench.count=1", cli.guest_words());
            logged(cli, roost(cli, &words, "counted")?, "counted")
        }
    }
}

/// The machine, in words.
pub fn machine(cli: &Cli) -> String {
    let version = Command::new(&cli.qemu).arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok());
    let version = version.as_deref().and_then(|text| text.lines().next());
    let qemu = version.and_then(|line| line.split(" version ").nth(1));
    let qemu = qemu.and_then(|text| text.split(' ').next()).unwrap_or("of unknown version");
    format!("QEMU {qemu} with `-M q35 -cpu {} -smp 1 -icount shift=0,sleep=off`", cli.cpu)
}

fn roost(cli: &Cli, words: &str, name: &str) -> Result<Command> {
    let mut tool = Command::new(cli.tool());
    tool.args(["run", "--icount", "--cpu", &cli.cpu])
        .arg(format!("--memory={}M", cli.memory))
        .arg(format!("--timeout={}", cli.timeout))
        .arg("--qemu")
        .arg(&cli.qemu)
        .arg("--kernel")
        .arg(kernel(cli)?)
        .arg("--initrd")
        .arg(initrd(cli)?)
        .arg(format!("--append=console=hvc0 quiet panic=-1 {words}"))
        .arg("--l1-log")
        .arg(cli.logs().join(format!("{name}.l1.log")));
    Ok(tool)
}

fn kernel(cli: &Cli) -> Result<&Path> {
    cli.kernel.as_deref().context("no kernel; name one with --kernel")
}

/// Builds the initial ramdisk that all runs share.
fn initrd(cli: &Cli) -> Result<PathBuf> {
    let program = cli.guest_bench();
    ensure!(
        program.exists(),
        "{} does not exist; build it with RUSTFLAGS='-C target-feature=+crt-static -C \
         relocation-model=static -C strip=symbols' cargo build --profile tool -p bench --bin \
         guest-bench --target x86_64-unknown-linux-gnu",
        program.display()
    );
    fs::create_dir_all(cli.logs())?;
    let place = cli.logs().join("bench.cpio");
    let mut tool = Command::new(cli.tool());
    tool.arg("initrd").arg("--init").arg(&program).arg("--output").arg(&place);
    if let Some(module) = &cli.msr_module {
        tool.arg("--add").arg(format!("{}=/msr.ko", module.display()));
    }
    let status = tool.status();
    let status = status.with_context(|| format!("cannot run {}", cli.tool().display()))?;
    ensure!(status.success(), "roost initrd failed: {status}");
    Ok(place)
}

/// Runs a command with its output in a file, and reads that.
fn logged(cli: &Cli, mut command: Command, name: &str) -> Result<Log> {
    fs::create_dir_all(cli.logs())?;
    let place = cli.logs().join(format!("{name}.log"));
    let errors = cli.logs().join(format!("{name}.err"));
    eprintln!("bench: {name} run, log in {}", place.display());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&place)?)
        .stderr(File::create(&errors)?)
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    // Time for `roost` to see to its own limit.
    let end = Instant::now() + Duration::from_secs(cli.timeout + 10);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            bail!("the {name} run did not end within {} s; see {}", cli.timeout, place.display());
        }
        thread::sleep(LOOK);
    };
    ensure!(status.success(), "the {name} run failed, {status}: {}", last_line(&errors));
    read(&place)
}

fn last_line(place: &Path) -> String {
    let text = fs::read_to_string(place).unwrap_or_default();
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    format!("{last} ({})", place.display())
}

fn read(place: &Path) -> Result<Log> {
    Ok(Log::parse(&text(place)?))
}

/// A log as text; consoles may carry any bytes.
fn text(place: &Path) -> Result<String> {
    let bytes = fs::read(place).with_context(|| format!("cannot read {}", place.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
