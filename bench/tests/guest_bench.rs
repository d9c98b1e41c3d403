//! Runs the guest benchmark on this machine and reads what it prints.

use bench_report::lines::Log;
use std::process::Command;

fn run(words: &[&str]) -> (String, Log) {
    let output = Command::new(env!("CARGO_BIN_EXE_guest-bench")).args(words).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let log = Log::parse(&text);
    (text, log)
}

#[test]
fn every_row_is_measured_or_says_why_not() {
    let (text, log) = run(&["bench.target=50", "bench.batches=2", "bench.skip=fork_exit_64m"]);
    let (list, _) = run(&["bench.list"]);
    assert!(log.done && log.calibration().is_some(), "{text}");
    for row in list.lines().filter_map(|line| line.split_once('\t')) {
        let known = log.reading(row.0).is_some() || log.skipped.contains_key(row.0);
        assert!(known || row.0 == "fork_exit_64m", "{} is missing:\n{text}", row.0);
    }
    for name in ["getppid", "pf_storm_1t", "fork_exec_true", "sig_deliver", "ctx_switch_futex"] {
        let cost = log.reading(name).map(|reading| reading.min_tsc);
        assert!(cost.is_some_and(|cost| cost > 10.0), "{name}: {cost:?}\n{text}");
    }
}

#[test]
fn counters_are_asked_for_in_guests_of_roost_only() {
    let (text, log) = run(&["bench.target=50", "bench.only=noop,getppid", "bench.count"]);
    assert!(log.readings.is_empty() && log.counted.is_empty() && log.done, "{text}");
    assert!(log.skipped["benchmark"].contains("a guest of Roost"), "{text}");
}

#[test]
fn typing_mistakes_are_refused() {
    for word in ["bench.only=nothing", "bench.onyl=noop", "bench.batches=0", "bench.target=x"] {
        let (text, log) = run(&[word]);
        assert!(log.readings.is_empty() && log.skipped.contains_key("benchmark"), "{word}: {text}");
    }
}
