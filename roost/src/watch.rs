//! Reads L1's log while it is written, for what cannot wait until the end: counters to be shown, and the
//! memory of a guest that has died.
//! Input: written by L1, which quotes guests: any bytes.

use crate::{control::Control, core_file::Description, dump, live::Live};
use anyhow::{Context, Result, anyhow};
use pv_abi::bundle::{CORE_END_PREFIX, CORE_PREFIX, LIVE_PREFIX};
use std::{
    fs::File,
    io::Read,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// From one look to the next.
const PAUSE: Duration = Duration::from_millis(50);

/// What is done with what is seen.
#[derive(Debug)]
pub struct Duties {
    /// L1's log.
    pub log: PathBuf,
    /// Shows counters.
    pub live: Option<Live>,
    /// Where the core file of each guest goes, by its number.
    pub cores: Vec<Option<PathBuf>>,
    /// The way to QEMU, if there may be a core file.
    pub control: Option<Control>,
    /// For files that nobody needs later.
    pub folder: PathBuf,
}

/// Somebody who watches.
#[derive(Debug)]
pub struct Watcher {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl Watcher {
    /// Begins, before QEMU does.
    ///
    /// # Errors
    /// The log cannot be made.
    pub fn start(duties: Duties) -> Result<Self> {
        // What an earlier run left in it is not to be read.
        File::create(&duties.log).context("cannot make L1's log")?;
        let log = File::open(&duties.log).context("cannot read L1's log")?;
        let over = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let over = Arc::clone(&over);
            move || watch(Tail::new(log), duties, &over)
        });
        Ok(Self { over, thread })
    }

    /// Ends with QEMU; what there is to tell the user.
    #[must_use]
    pub fn end(self) -> Vec<String> {
        self.over.store(true, Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn watch(mut log: Tail, mut duties: Duties, over: &AtomicBool) -> Vec<String> {
    let mut words = Vec::new();
    loop {
        // Asked first, so that what was written before the end is read after it.
        let last = over.load(Relaxed);
        while let Some(line) = log.line() {
            if let Some(json) = line.strip_prefix(LIVE_PREFIX) {
                if let Some(live) = &mut duties.live {
                    eprint!("{}", live.show(json));
                }
            } else if let Some(json) = line.strip_prefix(CORE_PREFIX) {
                words.push(duties.core(json, &mut log));
            }
        }
        if last {
            return words;
        }
        thread::sleep(PAUSE);
    }
}

impl Duties {
    /// Writes a core file; what to tell the user.
    fn core(&mut self, json: &str, log: &mut Tail) -> String {
        let core = match Description::parse(json) {
            Ok(core) => core,
            Err(why) => return format!("a core file could not be written: {why:#}"),
        };
        let name = core.name.clone();
        match self.take(&core, log) {
            Ok(file) => format!("the core file of guest '{name}' is {}", file.display()),
            Err(why) => format!("the core file of guest '{name}' could not be written: {why:#}"),
        }
    }

    fn take(&mut self, core: &Description, log: &mut Tail) -> Result<PathBuf> {
        let to = self.cores.get(core.guest).cloned().flatten();
        let to = to.ok_or_else(|| anyhow!("nobody has asked for it"))?;
        let control = self.control.as_mut().context("there is no way to QEMU")?;
        dump::take(control, core, &to, &self.folder, || !log.has(CORE_END_PREFIX))?;
        Ok(to)
    }
}

/// The lines of a file that grows.
#[derive(Debug)]
struct Tail<R = File> {
    file: R,
    unread: Vec<u8>,
}

impl<R: Read> Tail<R> {
    const fn new(file: R) -> Self {
        Self { file, unread: Vec::new() }
    }

    /// The next line, if it is complete.
    fn line(&mut self) -> Option<String> {
        if !self.unread.contains(&b'\n') {
            self.fill();
        }
        let end = self.unread.iter().position(|&byte| byte == b'\n')?;
        let line: Vec<u8> = self.unread.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned())
    }

    /// Whether a line that was not read yet begins with `prefix`.
    fn has(&mut self, prefix: &str) -> bool {
        self.fill();
        self.unread.split(|&byte| byte == b'\n').any(|line| line.starts_with(prefix.as_bytes()))
    }

    fn fill(&mut self) {
        // What cannot be read now may be later.
        drop(self.file.read_to_end(&mut self.unread));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::VecDeque, fs, io::Write};

    #[test]
    fn lines_come_when_they_are_complete() {
        let mut tail = Tail::new(VecDeque::from(b"one\r\ntwo\nthr".to_vec()));
        assert_eq!(tail.line().as_deref(), Some("one"));
        assert!(tail.has("two") && !tail.has("hr"));
        assert_eq!(tail.line().as_deref(), Some("two"));
        assert_eq!(tail.line(), None);
        tail.file.extend(b"ee\n");
        assert_eq!(tail.line().as_deref(), Some("three"));
    }

    #[test]
    fn what_an_earlier_run_left_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "@core {\"old\":1}\n").unwrap();
        let duties = Duties {
            log: log.clone(),
            live: None,
            cores: vec![None],
            control: None,
            folder: dir.path().into(),
        };
        let watcher = Watcher::start(duties).unwrap();
        let line = r#"@core {"guest":0,"name":"g","stock":true,"ram":[[0,0,4096]],"vcpus":[]}"#;
        let mut file = fs::OpenOptions::new().append(true).open(&log).unwrap();
        writeln!(file, "@core {{}}\n{line}").unwrap();
        let words = watcher.end();
        let [damaged, unasked] = &words[..] else { panic!("{words:?}") };
        assert!(damaged.contains("damaged"), "{damaged}");
        assert!(unasked.contains("guest 'g'") && unasked.contains("nobody"), "{unasked}");
    }
}
