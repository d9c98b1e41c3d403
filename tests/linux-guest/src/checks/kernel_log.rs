//! Looks through the kernel's log for signs that it found something wrong with itself.

use crate::check::{Context, Verdict};
use anyhow::{Result, bail, ensure};
use linux_guest::init::Role;
use std::{
    fs::OpenOptions,
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

/// Longest record of `/dev/kmsg`.
const RECORD: usize = 8192;

/// What kernels print about their own faults. Lines about faults of programs ("traps: ...
/// general protection fault ip:...", "segfault at ...") match none of these.
const SIGNS: [&str; 15] = [
    "WARNING: CPU:",
    "------------[ cut here ]",
    "BUG: ",
    "kernel BUG at",
    "Oops",
    "Call Trace:",
    "general protection fault:",
    "general protection fault,",
    "Unable to handle kernel",
    "unchecked MSR access error",
    "detected stall",
    "soft lockup",
    "blocked for more than",
    "Kernel panic",
    "Bad page state",
];

/// Heads of reports about memory that ran out, which have a call trace in them: of the killer, and
/// of a victim that asks for more before it dies. They end with `Mem-Info:`.
const OUT_OF_MEMORY: [&str; 2] = ["invoked oom-killer", "page allocation failure: order:"];

/// Stands for lines that were overwritten.
const CUT: &str = "[...]";

/// Nothing suspicious may be there. Only a guest of ours has a log that is about this run.
pub fn run(context: &Context) -> Result<Verdict> {
    if context.role == Role::User {
        return Verdict::skip("the log of this kernel is not about this run");
    }
    let log = read_log()?;
    ensure!(!log.is_empty(), "the kernel's log is empty");
    match first_sign(&log) {
        Some(at) => bail!("the kernel says: {}", log[at.saturating_sub(3)..=at].join(" / ")),
        None => Ok(Verdict::Pass),
    }
}

/// All lines, oldest first. Where older ones were overwritten, [`CUT`] stands for them.
fn read_log() -> Result<Vec<String>> {
    let mut device =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let (mut lines, mut record) = (Vec::new(), [0; RECORD]);
    loop {
        match device.read(&mut record) {
            Ok(0) => return Ok(lines),
            Ok(length) => {
                let record = String::from_utf8_lossy(&record[..length]);
                if lines.is_empty() && !is_first(&record) {
                    lines.push(CUT.to_owned());
                }
                lines.push(message(&record));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
            // Overwritten while we read: go on with what is there.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => lines.push(CUT.to_owned()),
            Err(error) => bail!("cannot read /dev/kmsg: {error}"),
        }
    }
}

/// The record is number 0.
fn is_first(record: &str) -> bool {
    record.split(',').nth(1) == Some("0")
}

/// The text of a record: `priority,sequence,time,flags;text`, then lines of properties.
fn message(record: &str) -> String {
    let text = record.split_once(';').map_or(record, |(_, text)| text);
    text.lines().next().unwrap_or_default().to_owned()
}

/// The first suspicious line. Reports about memory that ran out are none; the head of the first
/// may be cut off.
fn first_sign(log: &[String]) -> Option<usize> {
    let mut killing = false;
    log.iter().position(|line| {
        if OUT_OF_MEMORY.iter().any(|head| line.contains(head)) || line == CUT {
            killing = true;
        } else if line.contains("Mem-Info:") {
            killing = false;
        }
        SIGNS.iter().any(|sign| line.contains(sign) && !(killing && *sign == "Call Trace:"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(log: &str) -> Option<String> {
        let lines: Vec<String> = log.lines().map(str::to_owned).collect();
        first_sign(&lines).map(|at| lines[at].clone())
    }

    #[test]
    fn faults_of_programs_are_no_signs() {
        let log = "traps: guest-checks[80] general protection fault ip:401000 sp:7ffc error:0\n\
            guest-checks[81]: segfault at 0 ip 0000 sp 0000 error 4\n\
            RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable\n\
            traps: x[82] trap invalid opcode ip:1 sp:2 error:0";
        assert_eq!(sign(log), None);
    }

    #[test]
    fn the_out_of_memory_killers_trace_is_no_sign_but_others_are() {
        let log =
            "guest-checks invoked oom-killer: gfp_mask=0x1\nCall Trace:\n <TASK>\nMem-Info:\n";
        assert_eq!(sign(log), None);
        let victim = "init: page allocation failure: order:0, mode:0x1\nCall Trace:\nMem-Info:\n";
        assert_eq!(sign(victim), None);
        assert_eq!(sign(&format!("{log}Call Trace:")), Some("Call Trace:".into()));
        let cut = format!("{CUT}\nCall Trace:\n <TASK>\nMem-Info:\n");
        assert_eq!(sign(&cut), None);
        let oops = "general protection fault, probably for non-canonical address 0x1: 0000 [#1]";
        assert_eq!(sign(oops), Some(oops.into()));
    }

    #[test]
    fn records_lose_prefix_and_properties() {
        assert_eq!(message("6,1,2,-;hello; there\n SUBSYSTEM=x\n"), "hello; there");
        assert!(is_first("6,0,2,-;Linux") && !is_first("6,10,0,-;x"));
    }
}
