//! `roost mmu-stress`: stresses a shadow MMU and says what it found.

use crate::{
    cli::{MmuStressArgs, StressMmu, StressMode},
    progress,
};
use anyhow::{Context, Result, anyhow};
use mmu_stress::{Options, Replay, Report, Roost, ShadowMmu, Simple, Tracking, replay, stress};
use serde::Serialize;
use std::{fmt::Write, fs::File, path::Path, thread, time::Duration};

/// What the stress came to, as an exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No rule was broken.
    Held,
    /// A rule was broken.
    Broken,
}

impl From<Verdict> for u8 {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Held => 0,
            Verdict::Broken => 1,
        }
    }
}

/// Runs the stress.
///
/// # Errors
/// Impossible options, with the reason; a JSON file that cannot be written.
pub fn run(args: &MmuStressArgs) -> Result<Verdict> {
    let options = options(args);
    options.check().map_err(|why| anyhow!(why))?;
    sabotage(args)?;
    match args.mmu {
        StressMmu::Roost => with::<Roost>(args, &options),
        StressMmu::Simple => with::<Simple>(args, &options),
    }
}

/// Plants the bug and the failures that are asked for.
#[cfg(feature = "mutants")]
fn sabotage(args: &MmuStressArgs) -> Result<()> {
    use mmu_stress::mutant::{Mutant, plant};
    let planted = args.mutant.as_deref().map(|name| {
        name.parse().map_err(|_| {
            let names: Vec<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
            anyhow!("no mutant is called {name}; there are {}", names.join(", "))
        })
    });
    plant(planted.transpose()?);
    mmu_stress::roost::famine::fail_allocations(args.fail_allocations.unwrap_or(0));
    Ok(())
}

/// Refuses what this build cannot do.
#[cfg(not(feature = "mutants"))]
fn sabotage(args: &MmuStressArgs) -> Result<()> {
    if args.mutant.is_none() && args.fail_allocations.is_none() {
        return Ok(());
    }
    Err(anyhow!(
        "this roost cannot spoil its MMU: build one that can, with `cargo build --profile tool \
         --package roost --features mutants`"
    ))
}

fn options(args: &MmuStressArgs) -> Options {
    let cpus = || thread::available_parallelism().map_or(1, usize::from);
    Options {
        seed: args.seed,
        time: Duration::from_secs(args.seconds),
        threads: args.threads.unwrap_or_else(|| cpus().max(args.vms)),
        vms: args.vms,
        tracking: args.mode.map(|mode| match mode {
            StressMode::Notes => Tracking::Notes,
            StressMode::Unsync => Tracking::Unsync,
        }),
        steps: args.steps,
    }
}

fn with<M: ShadowMmu>(args: &MmuStressArgs, options: &Options) -> Result<Verdict> {
    if args.replay {
        let found = replay::<M>(options, options.seed);
        write_json(args.json.as_deref(), &found)?;
        let Some(found) = found else {
            println!("seed {}: no rule is broken in one thread", options.seed);
            return Ok(Verdict::Held);
        };
        print!("{}", listing(&found));
        return Ok(Verdict::Broken);
    }
    let bar = progress::timed("stress", options.time);
    let report = stress::<M>(options, |now| {
        bar.set_position((now.elapsed.as_millis() as u64).min(options.time.as_millis() as u64));
        let rate = now.steps as f64 / now.elapsed.as_secs_f64().max(0.001);
        bar.set_message(format!("{} steps/s, seed {}", short(rate), now.seed));
    });
    bar.finish_and_clear();
    write_json(args.json.as_deref(), &report)?;
    print!("{}", text(&report));
    Ok(if report.violation.is_some() { Verdict::Broken } else { Verdict::Held })
}

fn write_json(file: Option<&Path>, what: &impl Serialize) -> Result<()> {
    let Some(path) = file else { return Ok(()) };
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    serde_json::to_writer_pretty(file, what).context("cannot write JSON")
}

/// A number in four characters or so.
fn short(number: f64) -> String {
    match number {
        large if large >= 1e9 => format!("{:.1}G", large / 1e9),
        large if large >= 1e6 => format!("{:.1}M", large / 1e6),
        large if large >= 1e3 => format!("{:.1}k", large / 1e3),
        small => format!("{small:.0}"),
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    if let (Some(violation), Some(seed)) = (&report.violation, report.seed) {
        let _ = writeln!(text, "seed {seed}: {violation}");
        match &report.replay {
            Some(replay) if replay.violation.is_some() => text += &listing(replay),
            _ => {
                text += "one thread alone does not break the rule: it takes threads that really \
                         run side by side.\n";
                let _ = writeln!(text, "try again with --seed {seed}, the same options, and luck");
            }
        }
    }
    let rate = report.rate();
    let seconds = report.elapsed.as_secs_f64();
    let total = report.counts.total();
    let threads = report.options.threads;
    let _ = writeln!(
        text,
        "{} steps in {seconds:.1} s and {} rounds: {}/s, {}/s per thread",
        short(total as f64),
        report.rounds,
        short(rate),
        short(rate / threads as f64),
    );
    let kinds: Vec<_> = report
        .counts
        .named()
        .into_iter()
        .filter(|&(_, count)| count > 0)
        .map(|(name, count)| format!("{name} {}", short(count as f64 / seconds.max(0.001))))
        .collect();
    let _ = writeln!(text, "per second: {}", kinds.join(", "));
    if !report.missing.is_empty() {
        let _ = writeln!(text, "not supported, so not tested: {}", report.missing.join(", "));
    }
    text
}

fn listing(replay: &Replay) -> String {
    let mut text = String::new();
    let Some(violation) = &replay.violation else { return text };
    let _ = writeln!(text, "in one thread, {} of {} steps:", replay.steps.len(), replay.before);
    for step in &replay.steps {
        let _ = writeln!(text, "{step}");
    }
    let _ = writeln!(text, "{violation}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn args(words: &[&str]) -> MmuStressArgs {
        let all = ["roost", "mmu-stress"].iter().chain(words);
        match Cli::try_parse_from(all).unwrap().command {
            Command::MmuStress(args) => args,
            other => panic!("parsed as {other:?}"),
        }
    }

    #[test]
    fn impossible_options_say_why() {
        let refused = |words: &[&str]| run(&args(words)).unwrap_err().to_string();
        assert!(refused(&["--threads", "0"]).contains("threads"));
        assert!(refused(&["--threads", "2", "--vms", "3"]).contains("3 VMs need a thread each"));
        assert!(refused(&["--seconds", "0"]).contains("seconds"));
        // Not in this build, or no such mutant.
        assert!(refused(&["--mutant", "x"]).contains("mutant"));
    }

    #[test]
    fn more_vms_get_more_threads_by_themselves() {
        let options = options(&args(&["--vms", "100"]));
        assert_eq!(options.check(), Ok(()));
    }

    #[test]
    fn a_short_run_ends_well_and_names_its_figures() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("report.json");
        let mut args = args(&["--seconds", "1", "--mmu", "simple", "--steps", "200"]);
        args.json = Some(file.clone());
        assert_eq!(run(&args).unwrap(), Verdict::Held);
        let report: serde_json::Value = serde_json::from_reader(File::open(file).unwrap()).unwrap();
        assert!(report["counts"]["access"].as_u64().unwrap() > 0);
        assert!(report["violation"].is_null());
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([12.0, 1234.0, 5.6e6, 2e9].map(short), ["12", "1.2k", "5.6M", "2.0G"]);
    }
}
