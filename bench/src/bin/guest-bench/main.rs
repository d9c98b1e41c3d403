//! Measures what common operations cost in a guest, as its `/init` or as an ordinary program.
//!
//! Words, on the kernel's command line or as arguments: `bench.only=a,b`, `bench.skip=a,b`,
//! `bench.target=MICROSECONDS` (of one batch), `bench.batches=N`, `bench.cold=PAGES` (measures
//! memory that the kernel has never used, first), `bench.count` (what L1 counts in one batch of each
//! row, instead of what it costs), `bench.list`.
//!
//! What it prints is described in `bench_report::lines`.
#![cfg_attr(not(test), no_main)]

mod calibration;
mod facts;
mod measure;
mod rows;
mod sys;

use bench_report::lines;
use linux_guest::{
    init::{self, Role, finish, say},
    words::Words,
};
use measure::Plan;
use rows::Row;
use sys::{
    cpu::Started,
    process::{self, Ended},
};

linux_guest::entry!(run, c"true");

/// The words this program knows.
const WORDS: [&str; 7] = ["only", "skip", "target", "batches", "cold", "count", "list"];

/// Runs the benchmark; the result is the exit status.
fn run() -> u8 {
    let started = Started::now();
    let (role, words) = init::start("bench");
    let status = match benchmark(role, &words, started) {
        Ok(()) => 0,
        Err(reason) => {
            say(&lines::skip("benchmark", &reason));
            2
        }
    };
    say(lines::DONE);
    finish(role, status)
}

fn benchmark(role: Role, words: &Words, started: Started) -> Result<(), String> {
    words.only_known(&WORDS)?;
    if words.get("list").is_some() {
        rows::ALL.iter().for_each(|row| say(&format!("{}\t{}", row.name, row.operation)));
        return Ok(());
    }
    let plan = Plan::new(words)?;
    if plan.counts() {
        let there = process::run(|| i32::from(!sys::counters::are_there()));
        if !matches!(there, Ok(Ended::Exited(0))) {
            return Err("only a guest of Roost has counters to read".into());
        }
    }
    let chosen = choose(words)?;
    facts::print(role, started);
    calibration::print();
    sys::cpu::pin(0).map_err(|error| format!("cannot use CPU 0: {error}"))?;
    sys::memory::settle().map_err(|error| format!("out of memory: {error}"))?;
    if let pages @ 1.. = words.number("cold", 0_u64)? {
        in_a_child("pf_cold", || measure::cold(pages));
    }
    for row in chosen {
        in_a_child(row.name, || measure::row(row, &plan));
    }
    Ok(())
}

fn choose(words: &Words) -> Result<Vec<&'static Row>, String> {
    let (only, skip) = (words.list("only"), words.list("skip"));
    for name in only.iter().chain(&skip) {
        if !rows::ALL.iter().any(|row| row.name == *name) {
            return Err(format!("there is no row {name}; bench.list names them"));
        }
    }
    let chosen = rows::ALL.iter().filter(|row| only.is_empty() || only.contains(&row.name));
    Ok(chosen.filter(|row| !skip.contains(&row.name)).collect())
}

/// Every row starts from the same small process, and may leave its own as it likes.
fn in_a_child(name: &str, body: impl FnOnce() -> Result<(), String>) {
    let ended = process::run(|| match body() {
        Ok(()) => 0,
        Err(reason) => {
            say(&lines::skip(name, &reason));
            0
        }
    });
    match ended {
        Ok(Ended::Exited(0)) => {}
        Ok(Ended::Exited(status)) => say(&lines::skip(name, &format!("exit {status}"))),
        Ok(Ended::Killed(signal)) => say(&lines::skip(name, &format!("signal {signal}"))),
        Err(error) => say(&lines::skip(name, &format!("no process: {error}"))),
    }
}
