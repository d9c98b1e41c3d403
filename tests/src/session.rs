//! Talks to a guest over its console while the tool runs.

use crate::{
    folder::Folder,
    outcome::{self, Ended, Said},
    run,
    slot::Slot,
    terminal::Terminal,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

/// How long the guest may take to say what is expected, and to end, if a test does not say otherwise. A
/// boot with much memory is in it.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the tool may take to end when it is told to.
const END: Duration = Duration::from_secs(30);

/// What the guest's console is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wires {
    Pipes,
    Terminal,
}

/// A running guest and its console.
#[derive(Debug)]
pub struct Session<'a> {
    folder: &'a Folder,
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// Everything that came.
    text: Vec<u8>,
    /// Bytes of it that were looked at.
    seen: usize,
    errors: File,
    patience: Duration,
    _slot: Slot,
}

impl<'a> Session<'a> {
    pub(crate) fn start(
        folder: &'a Folder,
        mut command: Command,
        wires: Wires,
        slot: Slot,
    ) -> Self {
        let errors = outcome::scratch();
        command.stderr(outcome::handle(&errors));
        let (child, keyboard, screen) = match wires {
            Wires::Pipes => with_pipes(&mut command),
            Wires::Terminal => at_a_terminal(&mut command),
        };
        let screen = listen(screen);
        Self {
            folder,
            child,
            keyboard,
            screen,
            text: Vec::new(),
            seen: 0,
            errors,
            patience: PATIENCE,
            _slot: slot,
        }
    }

    /// Sets how long the guest may take to say what is expected, and to end.
    pub const fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Waits for `text`; returns what came before it.
    ///
    /// # Panics
    /// It does not come in time, or the console ends.
    pub fn expect(&mut self, text: &str) -> String {
        self.expect_by(text, |unseen| {
            let unseen = String::from_utf8_lossy(unseen);
            unseen.find(text).map(|at| (unseen[..at].to_owned(), at + text.len()))
        })
    }

    /// Waits until `find` finds what it looks for in the bytes not seen yet: a result, and how
    /// many of the bytes are done with.
    fn expect_by<T>(&mut self, what: &str, find: impl Fn(&[u8]) -> Option<(T, usize)>) -> T {
        let end = Instant::now() + self.patience;
        loop {
            if let Some((result, used)) = find(&self.text[self.seen..]) {
                self.seen += used;
                return result;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.text.extend(bytes.into_iter().filter(is_text)),
                Err(error) => panic!(
                    "no `{what}` ({error}); the console: {}\nthe tool: {}",
                    String::from_utf8_lossy(&self.text),
                    outcome::content(&self.errors)
                ),
            }
        }
    }

    /// Types bytes as they are.
    ///
    /// # Panics
    /// The console is closed.
    pub fn send(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the console is closed");
    }

    /// Waits for busybox's shell and makes its lines long enough for any command.
    pub fn expect_shell(&mut self) {
        self.expect("built-in commands");
        self.expect("# ");
        assert_eq!(self.shell("stty cols 250").0, 0);
    }

    /// Runs a command in the shell; returns its exit status and what it printed.
    ///
    /// A command must wait for the processes that it kills: the signal of one that dies while the
    /// shell writes its prompt costs the prompt.
    pub fn shell(&mut self, command: &str) -> (i32, String) {
        // The quotes keep the shell's echo of the line from looking like the result.
        self.send(&format!("echo '<''<'; {command}; echo \">\"\"$?>\"\n"));
        self.expect("<<\n");
        let (status, printed) = self.expect_by(command, status_line);
        self.expect("# ");
        (status, printed)
    }

    /// Runs a command that must succeed; returns what it printed.
    ///
    /// # Panics
    /// It fails.
    pub fn succeed(&mut self, command: &str) -> String {
        let (status, printed) = self.shell(command);
        assert_eq!(status, 0, "{command}: {printed}");
        printed
    }

    /// Sends a signal to the tool.
    ///
    /// # Panics
    /// The tool is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the tool is gone");
    }

    /// Everything that the console has said, once the tool has ended because QEMU was killed.
    ///
    /// # Panics
    /// The tool does not end.
    #[must_use]
    pub fn after_kill(mut self) -> String {
        let status = outcome::wait(&mut self.child, END);
        assert!(status.is_some_and(|status| !status.success()), "the tool takes no notice");
        while let Ok(bytes) = self.screen.recv_timeout(Duration::from_millis(100)) {
            self.text.extend(bytes.into_iter().filter(is_text));
        }
        String::from_utf8_lossy(&self.text).into_owned()
    }

    /// The process id of QEMU, the tool's only child.
    ///
    /// # Panics
    /// It has none or several.
    #[must_use]
    pub fn qemu(&self) -> u32 {
        let tool = self.child.id();
        let children = fs::read_to_string(format!("/proc/{tool}/task/{tool}/children"));
        let children = children.expect("the tool is gone");
        children.trim().parse().unwrap_or_else(|_| panic!("one child, not `{children}`"))
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// It does not come in time.
    #[must_use]
    pub fn end(self) -> Ended {
        let patience = self.patience;
        self.end_by(patience)
    }

    /// The same for a guest that is to do more by itself before it ends.
    ///
    /// # Panics
    /// The end does not come in so many seconds.
    #[must_use]
    pub fn end_within(self, seconds: u64) -> Ended {
        self.end_by(Duration::from_secs(seconds))
    }

    fn end_by(mut self, limit: Duration) -> Ended {
        let status = outcome::wait(&mut self.child, limit);
        while let Ok(bytes) = self.screen.recv_timeout(Duration::from_millis(100)) {
            self.text.extend(bytes.into_iter().filter(is_text));
        }
        let out = String::from_utf8_lossy(&self.text).into_owned();
        let err = outcome::content(&self.errors);
        let status = status.unwrap_or_else(|| panic!("the tool does not end: {out}\n{err}"));
        run::ended(self.folder, Said { status: outcome::code(status), out, err })
    }
}

impl Drop for Session<'_> {
    /// A test that failed leaves no machine behind: the tool ends QEMU when told to end.
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = outcome::wait(&mut self.child, END);
        }
    }
}

/// Terminals add carriage returns of their own; other bytes than ASCII would shift positions.
fn is_text(byte: &u8) -> bool {
    byte.is_ascii() && *byte != b'\r'
}

/// Finds `>STATUS>` at the start of a line.
fn status_line(unseen: &[u8]) -> Option<((i32, String), usize)> {
    let text = String::from_utf8_lossy(unseen);
    let starts = text.match_indices('>').map(|(at, _)| at);
    starts.filter(|at| *at == 0 || text[..*at].ends_with('\n')).find_map(|at| {
        let (status, _) = text[at + 1..].split_once(">\n")?;
        let used = at + status.len() + 3;
        Some(((status.parse().ok()?, text[..at].to_owned()), used))
    })
}

fn with_pipes(command: &mut Command) -> (Child, File, File) {
    let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let (Some(keyboard), Some(screen)) = (child.stdin.take(), child.stdout.take()) else {
        unreachable!("both were asked for")
    };
    let file = |end: std::os::fd::OwnedFd| File::from(end);
    (child, file(keyboard.into()), file(screen.into()))
}

fn at_a_terminal(command: &mut Command) -> (Child, File, File) {
    let Terminal { user, program } = Terminal::new().expect("no terminal to be had");
    let child = spawn(command.stdin(outcome::handle(&program)).stdout(program));
    (child, user.try_clone().expect("no second handle"), user)
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Reads in a thread, to be able to give up waiting.
pub(crate) fn listen(mut screen: File) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match screen.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A terminal whose program has ended gives an error, a pipe gives nothing.
                Ok(0) | Err(_) => break,
                Ok(bytes) if sender.send(buffer[..bytes].to_vec()).is_err() => break,
                Ok(_) => {}
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::status_line;

    #[test]
    fn a_status_stands_at_the_start_of_a_line() {
        assert_eq!(status_line(b"a >1>\nb\n>0>\n# "), Some(((0, "a >1>\nb\n".into()), 12)));
        assert_eq!(status_line(b">130>\n"), Some(((130, String::new()), 6)));
        assert_eq!(status_line(b">0"), None);
        assert_eq!(status_line(b"\">\"\"$?>\"\n"), None);
    }
}
