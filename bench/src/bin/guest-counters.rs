//! Runs a command in a guest of Roost and prints what L1 has counted meanwhile.
//!
//! `guest-counters NAME COMMAND [ARGUMENT...]`, then a line `@C NAME COUNTER=VALUE...` on standard output.
//! Elsewhere than in a guest of Roost a signal ends it.

use anyhow::{Context, Result, ensure};
use std::{env, process::Command, process::ExitCode};

#[path = "guest-bench/sys/counters.rs"]
mod counters;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("guest-counters: {error:#}");
        ExitCode::from(2)
    })
}

fn run() -> Result<ExitCode> {
    let mut words = env::args_os().skip(1);
    let (name, program) = words.next().zip(words.next()).context("no name and command")?;
    ensure!(counters::are_there(), "only a guest of Roost has counters to read");
    let mut command = Command::new(&program);
    command.args(words);
    let before = counters::read();
    let status = command.status();
    let counts = counters::since(&before);
    let status = status.with_context(|| format!("cannot run {}", program.display()))?;
    let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name}={count}")).collect();
    println!("@C {} {}", name.display(), counts.join(" "));
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
