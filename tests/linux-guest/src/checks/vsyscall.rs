//! Checks that the vsyscall page does what the kernel says it does.

use crate::{
    check::{Context, Verdict},
    sys::{trap, vsyscall},
};
use anyhow::{Result, bail, ensure};
use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

/// `si_code`: nothing is mapped there.
const SEGV_MAPERR: i32 = 1;

/// What the kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The page does not exist.
    None,
    /// Calls work, reads fault.
    ExecuteOnly,
    /// Calls work, and so do reads.
    Emulate,
}

/// Calls `time` in the page and reads it.
pub fn run(context: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    let mode = mode_in(&fs::read_to_string("/proc/self/maps")?);
    let asked = mode_asked(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    context.note(format!("the kernel says {mode:?}"));
    if let Some(asked) = asked {
        ensure!(mode == asked, "the command line asks for {asked:?}, /proc shows {mode:?}");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    match (mode, vsyscall::time()) {
        (Mode::None, Err(trap)) => {
            trap.expect(libc::SIGSEGV, SEGV_MAPERR)?.expect_address(vsyscall::TIME)?;
        }
        (Mode::None, Ok(_)) => bail!("the page can be called"),
        (_, Err(trap)) => bail!("the page cannot be called: {trap:x?}"),
        (_, Ok(time)) => ensure!(time.abs_diff(now) <= 1, "time is {time}, not {now}"),
    }
    let readable = trap::load(vsyscall::TIME).is_ok();
    ensure!(readable == (mode == Mode::Emulate), "the page can be read: {readable}");
    Ok(Verdict::Pass)
}

fn mode_in(maps: &str) -> Mode {
    let line = maps.lines().find(|line| line.ends_with("[vsyscall]"));
    match line.and_then(|line| line.split(' ').nth(1)) {
        None => Mode::None,
        Some(access) if access.starts_with('r') => Mode::Emulate,
        Some(_) => Mode::ExecuteOnly,
    }
}

fn mode_asked(command_line: &str) -> Option<Mode> {
    let value = command_line.split_whitespace().rev().find_map(|w| w.strip_prefix("vsyscall="));
    match value? {
        "emulate" => Some(Mode::Emulate),
        "xonly" => Some(Mode::ExecuteOnly),
        "none" => Some(Mode::None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_from_maps_and_command_line() {
        let line = "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]";
        assert_eq!(mode_in(line), Mode::ExecuteOnly);
        assert_eq!(mode_in(&line.replace("--xp", "r-xp")), Mode::Emulate);
        assert_eq!(mode_in(""), Mode::None);
        assert_eq!(mode_asked("a vsyscall=none vsyscall=emulate"), Some(Mode::Emulate));
        assert_eq!(mode_asked("quiet"), None);
    }
}
