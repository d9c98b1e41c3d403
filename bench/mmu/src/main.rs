//! Measures the shadow MMU on the host and writes what came out.

mod cli;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use cli::Cli;
use mmu_bench::report::{Results, markdown, measure, plot, targets};
use std::{fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mmu-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let cores = std::thread::available_parallelism().context("cannot count the cores")?;
    let plan = cli.plan(cores.get()).map_err(|error| anyhow!(error))?;
    // Before minutes are spent.
    let document = cli.markdown();
    let folder = document.parent().unwrap_or(Path::new("."));
    let images = folder.join("img");
    fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;

    let results = measure::measure(plan, |what| eprintln!("measuring: {what}"))?;
    print!("{}", markdown::summary(&results));
    save(cli, &results, &document, &images)?;
    let missed = targets::targets(&results).iter().filter(|target| !target.met()).count();
    Ok(if cli.check && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn save(cli: &Cli, results: &Results, document: &Path, images: &Path) -> Result<()> {
    if let Some(place) = &cli.json {
        write(place, serde_json::to_string_pretty(results)? + "\n")?;
    }
    plot::draw(results, images)?;
    write(document, markdown::render(results, &cli.repeat_command(), "img"))
}

fn write(place: &Path, text: String) -> Result<()> {
    fs::write(place, text).with_context(|| format!("cannot write {}", place.display()))
}
