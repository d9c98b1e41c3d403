//! Runs the guest benchmark on an emulated machine, as a guest of Roost there, and compares.

mod cli;
mod runs;

use anyhow::{Context, Result, bail, ensure};
use bench_report::{
    counters::{self, Counted},
    lines::{CALIBRATION, Log},
    markdown::{self, Report},
    peers::Peers,
    table::{self, Line, Verdict},
};
use clap::Parser;
use cli::Cli;
use serde_json::json;
use std::{fs, process::ExitCode};

/// How far a calibration may be off, in parts of 100: a timer tick may lie in every try.
const TICK: u64 = 3;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let peers = Peers::recorded()?;
    let native = checked(runs::native(cli)?).context("the native run")?;
    let (mut guest, mut counted) = (None, Vec::new());
    if !cli.native_only {
        let log = runs::guest(cli)?;
        guest = Some(checked(log).context("the run in a guest")?);
        counted = counters::per_operation(&runs::counted(cli)?.counted);
    }
    let lines = table::compare(&native, guest.as_ref(), &peers);
    print!("{}", table::text(&lines, &peers));
    if !cli.native_only && counted.is_empty() {
        eprintln!("bench: the guest counted nothing");
    }
    let report = Report {
        command: &cli.repeat_command(),
        machine: &runs::machine(cli),
        native: &native,
        guest: guest.as_ref(),
        lines: &lines,
        counted: &counted,
        peers: &peers,
    };
    save(cli, &report)?;
    let missed = lines.iter().filter(|line| line.verdict() == Verdict::Missed).count();
    if missed > 0 {
        println!("{missed} rows miss their target");
    }
    Ok(if cli.check && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Refuses a log that did not come to its end or whose ticks are no instructions.
fn checked(log: Log) -> Result<Log> {
    ensure!(log.done, "the benchmark did not come to its end; see the log");
    ensure!(!log.readings.is_empty(), "the log holds no reading: {:?}", log.skipped);
    match log.calibration() {
        Some(ticks) if ticks.abs_diff(CALIBRATION) * 100 <= CALIBRATION * TICK => Ok(log),
        Some(ticks) => bail!(
            "{CALIBRATION} instructions took {ticks} ticks: instructions were not counted \
             (-icount shift=0, one CPU)"
        ),
        None => bail!("the log holds no calibration"),
    }
}

fn save(cli: &Cli, report: &Report<'_>) -> Result<()> {
    if let Some(place) = &cli.json {
        let (native, guest) = (report.native, report.guest);
        let (lines, counted): (&[Line], &[Counted]) = (report.lines, report.counted);
        let value = json!({
            "machine": report.machine,
            "native": native,
            "guest": guest,
            "comparison": lines,
            "counters": counted,
        });
        let text = serde_json::to_string_pretty(&value)? + "\n";
        fs::write(place, text).with_context(|| format!("cannot write {}", place.display()))?;
    }
    let place = cli.markdown();
    fs::write(&place, markdown::render(report))
        .with_context(|| format!("cannot write {}; name another with --md", place.display()))
}
