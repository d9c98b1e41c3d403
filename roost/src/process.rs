//! Runs other programs and makes sure that they end: by themselves, at a time limit or on a signal.

use anyhow::{Context, Result, bail};
use shared_child::{SharedChild, unix::SharedChildExt};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread,
    time::Duration,
};

/// How long a program may take to end when asked to.
const GRACE: Duration = Duration::from_secs(2);

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The program ended.
    Exited(ExitStatus),
    /// The time limit passed and the program was ended.
    TimedOut,
    /// This process was told to end by this signal, and ended the program.
    Signalled(i32),
}

#[derive(Debug)]
enum Event {
    Exited(io::Result<ExitStatus>),
    Signal(i32),
}

/// Runs `command` with our standard input and output, for at most `limit`; those lines of its
/// standard error that `keep` accepts go to ours.
///
/// # Errors
/// The command cannot be started or waited for.
pub fn supervise(
    mut command: Command,
    limit: Option<Duration>,
    keep: fn(&str) -> bool,
) -> Result<Ended> {
    // Signals are watched before the start, so that none can leave the program behind.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot watch signals")?;
    let watch = signals.handle();
    let child = Arc::new(start(command.stderr(Stdio::piped()))?);
    let stderr = child.take_stderr().map(|pipe| thread::spawn(move || pass_on(pipe, keep)));
    let (sender, events) = mpsc::channel();
    // Sending fails only when the run is over and nobody needs to know.
    thread::spawn({
        let sender = sender.clone();
        move || signals.forever().for_each(|signal| drop(sender.send(Event::Signal(signal))))
    });
    thread::spawn({
        let child = Arc::clone(&child);
        move || drop(sender.send(Event::Exited(child.wait())))
    });

    let ended = match next(&events, limit) {
        Some(Event::Exited(status)) => Ended::Exited(status.context("cannot wait for QEMU")?),
        Some(Event::Signal(signal)) => {
            stop(&child, &events)?;
            Ended::Signalled(signal)
        }
        None => {
            stop(&child, &events)?;
            Ended::TimedOut
        }
    };
    watch.close();
    if let Some(Err(panic)) = stderr.map(thread::JoinHandle::join) {
        std::panic::resume_unwind(panic);
    }
    Ok(ended)
}

fn start(command: &mut Command) -> Result<SharedChild> {
    SharedChild::spawn(command)
        .with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// The next event, or `None` if there is none within `limit`.
fn next(events: &Receiver<Event>, limit: Option<Duration>) -> Option<Event> {
    match limit {
        Some(limit) => events.recv_timeout(limit).ok(),
        None => events.recv().ok(),
    }
}

/// Ends the program: kindly first, so that it can put the terminal back, then by force.
fn stop(child: &SharedChild, events: &Receiver<Event>) -> Result<()> {
    child.send_signal(SIGTERM).context("cannot end QEMU")?;
    while let Some(event) = next(events, Some(GRACE)) {
        if matches!(event, Event::Exited(_)) {
            return Ok(());
        }
    }
    child.kill().context("cannot end QEMU")?;
    child.wait().context("cannot wait for QEMU")?;
    Ok(())
}

fn pass_on(pipe: impl Read, keep: fn(&str) -> bool) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        let text = String::from_utf8_lossy(&line);
        if keep(&text) {
            eprint!("{text}");
        }
        line.clear();
    }
}

/// What a short-lived program said.
#[derive(Debug)]
pub struct Reply {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a short-lived program on `input` and collects what it says.
///
/// # Errors
/// It cannot be started, or does not end within `limit`.
pub fn ask(mut command: Command, input: &'static [u8], limit: Duration) -> Result<Reply> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = Arc::new(start(&mut command)?);
    if let Some(mut stdin) = child.take_stdin() {
        // A program that does not want the input may close it.
        thread::spawn(move || drop(stdin.write_all(input)));
    }
    let stdout = child.take_stdout().map(|pipe| thread::spawn(move || text_of(pipe)));
    let stderr = child.take_stderr().map(|pipe| thread::spawn(move || text_of(pipe)));
    let (sender, events) = mpsc::channel();
    thread::spawn({
        let child = Arc::clone(&child);
        move || drop(sender.send(Event::Exited(child.wait())))
    });
    let Some(Event::Exited(status)) = next(&events, Some(limit)) else {
        child.kill().context("cannot end it")?;
        bail!("{} did not answer in time", command.get_program().display());
    };
    let collect = |reader: Option<thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    Ok(Reply { status: status?, stdout: collect(stdout), stderr: collect(stderr) })
}

fn text_of(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What was read before an error is still worth showing.
    drop(pipe.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_exit_status_comes_back() {
        let ended = supervise(shell("exit 33"), None, |_| true).unwrap();
        let Ended::Exited(status) = ended else { panic!("{ended:?}") };
        assert_eq!(status.code(), Some(33));
    }

    #[test]
    fn the_time_limit_ends_it() {
        let start = Instant::now();
        let limit = Some(Duration::from_millis(50));
        assert_eq!(supervise(shell("exec sleep 60"), limit, |_| true).unwrap(), Ended::TimedOut);
        assert!(start.elapsed() < GRACE, "ended at the first request");
    }

    #[test]
    fn a_deaf_program_is_ended_by_force() {
        let script = "trap '' TERM; while :; do sleep 1; done";
        let limit = Some(Duration::from_millis(300));
        assert_eq!(supervise(shell(script), limit, |_| true).unwrap(), Ended::TimedOut);
    }

    #[test]
    fn questions_are_answered() {
        let reply = ask(shell("cat; echo no >&2; exit 3"), b"hi", GRACE).unwrap();
        assert_eq!((reply.stdout.as_str(), reply.stderr.as_str()), ("hi", "no\n"));
        assert_eq!(reply.status.code(), Some(3));
        let error = ask(shell("exec sleep 60"), b"", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not answer"));
    }

    #[test]
    fn an_absent_program_is_named() {
        let error = supervise(Command::new("/nowhere/qemu"), None, |_| true).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/qemu"));
    }
}
