//! How runs end other than by the guest's power-off: death, restart, time limit, signals.

use roost_tests::{built::Kernel, folder::Folder, outcome::Ended};
use rustix::process::Signal;
use std::path::Path;

/// A kernel that finds no first program panics.
#[test]
fn kernel_panics() {
    let folder = Folder::new();
    // Without an answer to a panic, at once, and after a second.
    for words in ["", "panic=-1", "panic=1"] {
        let run = folder.run(&Kernel::Cloud.file()).append("console=hvc0 quiet").append(words);
        let ended = run.to_end();
        assert!(ended.said.out.contains("Kernel panic - not syncing"), "{words}: {ended:?}");
        ended.assert_died("its kernel panicked");
    }
}

/// The first program ends.
#[test]
fn the_first_program_ends() {
    let folder = Folder::new();
    let initrd = folder.busybox();
    let run = folder.run(&Kernel::Cloud612.file()).initrd(&initrd);
    let ended = run.append("console=hvc0 quiet rdinit=/bin/false").to_end();
    assert!(ended.said.out.contains("Attempted to kill init"), "{ended:?}");
    ended.assert_died("its kernel panicked");
}

/// Other words than `poweroff` end the run as well.
#[test]
fn halt_and_restart() {
    let folder = Folder::new();
    let initrd = folder.busybox();
    for (command, err) in [
        ("halt", ""),
        ("reboot", "roost: the guest asked for a restart; with --restart on-reboot it gets one\n"),
    ] {
        let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd);
        let mut guest = run.append("console=hvc0 quiet").piped();
        guest.expect_shell();
        guest.send(&format!("{command}\n"));
        let ended = guest.end();
        assert!(ended.said.err.ends_with(err), "{command}: {ended:?}");
        assert_eq!(ended.said.status, 0, "{command}: {ended:?}");
        ended.assert_l1_is_sound();
    }
}

/// A restart in place, and no more than that: the guest's end by its own kernel's panic is one.
#[test]
fn restarts_that_are_asked_for() {
    let folder = Folder::new();
    let initrd = folder.busybox();
    let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd).option("--restart", "on-reboot");
    let mut guest = run.append("console=hvc0 quiet").piped();
    for _ in 0..2 {
        guest.expect_shell();
        guest.send("reboot\n");
    }
    guest.expect_shell();
    guest.send("echo c > /proc/sysrq-trigger\n");
    let ended = guest.end();
    assert_eq!(ended.log.matches("asked for a restart").count(), 2, "{ended:?}");
    ended.assert_died("its kernel panicked");
}

#[test]
fn the_time_limit() {
    let folder = Folder::new();
    let initrd = folder.busybox();
    let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd).append("console=hvc0 quiet");
    let ended = run.limit(5).to_end();
    assert_cut(&ended, 124, "roost: the time limit passed; QEMU was ended");
}

#[test]
fn signals_to_the_tool() {
    let folder = Folder::new();
    let initrd = folder.busybox();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd);
        let mut guest = run.append("console=hvc0").piped();
        guest.expect("Linux version");
        let qemu = guest.qemu();
        assert!(is_qemu(qemu));
        guest.signal(signal);
        let ended = guest.end();
        assert!(!is_qemu(qemu), "QEMU still runs after {signal:?}");
        let number = signal.as_raw();
        assert_cut(&ended, 128 + number, &format!("roost: ended by signal {number}"));
    }
}

fn assert_cut(ended: &Ended, status: i32, line: &str) {
    let said = &ended.said;
    assert_eq!(said.status, status, "{said:?}");
    assert!(said.err.lines().any(|found| found == line), "{said:?}");
    assert!(said.err.contains("roost: L1's log is in l1.log\n"), "{said:?}");
    assert!(ended.log.contains("Roost") && !ended.log.contains("L1 failed"), "{ended:?}");
}

fn is_qemu(process: u32) -> bool {
    let program = Path::new("/proc").join(process.to_string()).join("exe").read_link();
    program.is_ok_and(|path| path.to_string_lossy().contains("qemu"))
}
