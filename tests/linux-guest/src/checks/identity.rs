//! Compares what `/proc` says with what the kernel says elsewhere.

use crate::{
    check::{Context, Verdict},
    pinning,
};
use anyhow::{Context as _, Result, ensure};
use linux_guest::init::first_line;
use nix::sys::utsname::uname;
use std::fs;

/// `uname`, `/proc/cpuinfo` and `/proc/meminfo`.
pub fn run(context: &Context) -> Result<Verdict> {
    let release = uname()?.release().to_string_lossy().into_owned();
    let file = first_line("/proc/sys/kernel/osrelease").context("osrelease cannot be read")?;
    ensure!(release == file, "uname says {release}, /proc says {file}");

    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let usable = pinning::allowed()?.len();
    ensure!(cpus >= usable, "/proc/cpuinfo lists {cpus} CPUs, {usable} can be used");

    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let total = kilobytes(&meminfo, "MemTotal").context("no MemTotal in /proc/meminfo")?;
    let free = kilobytes(&meminfo, "MemFree").context("no MemFree in /proc/meminfo")?;
    ensure!((16 << 10..1 << 40).contains(&total), "MemTotal is {total} kB");
    ensure!(free < total, "MemFree is {free} kB of {total} kB");
    context.note(format!("Linux {release}, {cpus} CPUs, {} MiB", total >> 10));
    Ok(Verdict::Pass)
}

fn kilobytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotalX: 1 kB\nMemTotal:   2048 kB\n";
        assert_eq!(kilobytes(text, "MemTotal"), Some(2048));
        assert_eq!(kilobytes(text, "MemFree"), None);
    }
}
