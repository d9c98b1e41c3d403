//! Runs every check in a process of its own, within a time limit.

use crate::{
    check::{Check, Context, Verdict},
    checks,
    sys::child::{Child, reap_orphans},
    tap::{Outcome, Tally},
};
use anyhow::{Context as _, Result, bail};
use linux_guest::{
    init::{Role, say},
    words::Words,
};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::WaitStatus,
    unistd::{pipe2, read, write},
};
use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

/// Longest report of a check: less than a pipe takes in one piece.
const REPORT: usize = 2048;

/// Runs the chosen checks and prints the results; returns the exit status.
pub fn run_all(context: &Context, words: &Words) -> u8 {
    let (only, skip) = (words.list("only"), words.list("skip"));
    let chosen: Vec<&Check> = checks::ALL
        .iter()
        .filter(|check| only.is_empty() || only.contains(&check.name))
        .filter(|check| !skip.contains(&check.name))
        .collect();
    say("TAP version 13");
    say(&format!("1..{}", chosen.len()));
    let mut tally = Tally::default();
    for check in chosen {
        let start = Instant::now();
        let outcome = run_one(check, context)
            .unwrap_or_else(|error| Outcome::Failed(format!("cannot run: {error:#}")));
        say(&tally.line(check.name, &outcome, start.elapsed()));
        if context.role == Role::Init {
            reap_orphans();
        }
    }
    say(&tally.last_line());
    u8::from(!tally.passed())
}

fn run_one(check: &Check, context: &Context) -> Result<Outcome> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let context = Context { name: check.name, ..*context };
    let child = Child::spawn_group(|| {
        let report = encode((check.run)(&context));
        u8::from(write(&writer, &report).is_err())
    })?;
    drop(writer);
    let outcome = await_report(&child, &reader, context.limit);
    child.kill_group();
    let ended = child.wait()?;
    match outcome? {
        Some(outcome) => Ok(outcome),
        None => Ok(Outcome::Failed(without_report(&ended))),
    }
}

/// The outcome of a check; `None` if it ended without a report.
fn await_report(child: &Child, reader: &OwnedFd, limit: Duration) -> Result<Option<Outcome>> {
    let end = child.pidfd().context("pidfd_open")?;
    let mut waits = [
        PollFd::new(reader.as_fd(), PollFlags::POLLIN),
        PollFd::new(end.as_fd(), PollFlags::POLLIN),
    ];
    if poll(&mut waits, PollTimeout::try_from(limit).unwrap_or(PollTimeout::NONE))? == 0 {
        let reason = format!("no result within {} s", limit.as_secs());
        return Ok(Some(Outcome::Failed(reason)));
    }
    if !waits[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)) {
        return Ok(None);
    }
    let mut report = [0; REPORT];
    let length = read(reader, &mut report)?;
    decode(&report[..length]).map(Some)
}

fn without_report(ended: &WaitStatus) -> String {
    match ended {
        WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
        WaitStatus::Exited(_, status) => format!("exited with {status} before its result"),
        other => format!("ended without a result: {other:?}"),
    }
}

fn encode(result: Result<Verdict>) -> Vec<u8> {
    let text = match result {
        Ok(Verdict::Pass) => "P".to_owned(),
        Ok(Verdict::Skip(reason)) => format!("S{reason}"),
        Err(error) => format!("F{error:#}"),
    };
    text.into_bytes().into_iter().take(REPORT).collect()
}

fn decode(report: &[u8]) -> Result<Outcome> {
    let text = String::from_utf8_lossy(report);
    let mut rest = text.chars();
    Ok(match rest.next() {
        Some('P') => Outcome::Ended(Verdict::Pass),
        Some('S') => Outcome::Ended(Verdict::Skip(rest.collect())),
        Some('F') => Outcome::Failed(rest.collect()),
        _ => bail!("the check wrote no result"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn reports_survive_the_pipe() {
        for (result, outcome) in [
            (Ok(Verdict::Pass), Outcome::Ended(Verdict::Pass)),
            (Verdict::skip("a"), Outcome::Ended(Verdict::Skip("a".into()))),
            (Err(anyhow!("b").context("c")), Outcome::Failed("c: b".into())),
        ] {
            assert_eq!(decode(&encode(result)).unwrap(), outcome);
        }
        assert!(decode(b"").is_err());
    }
}
