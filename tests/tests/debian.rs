//! A Debian with systemd on a disk: it comes up, keeps what is written over a restart, and goes down.

use roost_tests::{folder::Folder, session::Session};
use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, SystemTime},
};

/// Starting it takes an emulator half a minute if nobody else is there.
const PATIENCE: Duration = Duration::from_secs(600);

fn host(program: &str, arguments: &[&str]) -> Output {
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output()
        .unwrap_or_else(|error| panic!("{program} (package e2fsprogs): {error}"))
}

/// Logs in as a person does, and makes the shell one that the session can talk to.
fn log_in(console: &mut Session<'_>) {
    console.expect("roost login: ");
    console.send("root\n");
    console.expect("Password: ");
    console.send("roost\n");
    console.expect("root@roost:~# ");
    console.send("exec env PS1='# ' sh\n");
    console.expect("sh\n");
    console.expect("# ");
    assert_eq!(console.shell("stty cols 250").0, 0);
}

/// systemd has started all that it should, and the kernel has found nothing wrong with itself.
fn is_well(console: &mut Session<'_>) {
    let (_, state) = console.shell("systemctl is-system-running --wait");
    let (_, failed) = console.shell("systemctl --failed --no-legend --plain --no-pager");
    assert_eq!((state.as_str(), failed.as_str()), ("running\n", ""));
    for unit in ["multi-user.target", "ssh.service", "serial-getty@hvc0.service"] {
        console.succeed(&format!("systemctl is-active --quiet {unit}"));
    }
    let (status, found) =
        console.shell("dmesg | grep -E 'WARNING: |BUG: |Oops|Call Trace|I/O error'");
    assert_eq!((status, found.as_str()), (1, ""));
}

/// The clock on the wall, as the guest shows it, is within two seconds of ours.
fn tells_the_time(console: &mut Session<'_>) {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    let seen: u64 = console.succeed("date +%s").trim().parse().expect("seconds");
    let after = now();
    assert!((before - 2..=after + 2).contains(&seen), "{before} <= {seen} <= {after}");
}

#[test]
fn debian_restarts_and_keeps_its_files() {
    let folder = Folder::new();
    let mut console = folder.debian().limit(1500).piped();
    console.set_patience(PATIENCE);
    log_in(&mut console);
    is_well(&mut console);
    tells_the_time(&mut console);
    assert_eq!(console.succeed("findmnt -no SOURCE,FSTYPE /"), "/dev/xvda ext4\n");
    console.succeed("seq 1 50000 > /root/numbers && dpkg --verify coreutils systemd");
    let first = console.succeed("cat /proc/sys/kernel/random/boot_id");

    console.send("systemctl reboot\n");
    log_in(&mut console);
    let second = console.succeed("cat /proc/sys/kernel/random/boot_id");
    assert_ne!(first, second, "it has not started again");
    is_well(&mut console);
    tells_the_time(&mut console);
    console.succeed("seq 1 50000 | cmp - /root/numbers");
    console.send("poweroff\n");
    let ended = console.end();
    ended.assert_powered_off();
    assert_eq!(ended.log.matches("asked for a restart").count(), 1, "{}", ended.log);
    is_clean(&folder.path("disk.img"));
}

/// The file system was unmounted, and nothing is wrong with it.
fn is_clean(image: &Path) {
    let image = image.to_str().expect("names of temporary files are text");
    let said = host("e2fsck", &["-f", "-n", image]);
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && !text.contains("recover"), "{text}");
}
