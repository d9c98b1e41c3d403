//! A person at a terminal: Ctrl-C, Ctrl-Z and job control reach the guest's shell.

use roost_tests::{built::Kernel, folder::Folder, session::Session};
use std::{thread, time::Duration};

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";

fn shell(folder: &Folder) -> Session<'_> {
    let initrd = folder.busybox();
    let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd);
    let mut guest = run.append("console=hvc0 quiet").at_a_terminal();
    guest.expect_shell();
    guest
}

#[test]
fn job_control() {
    let folder = Folder::new();
    let mut guest = shell(&folder);

    // Ended by SIGINT, stopped by SIGTSTP. A sleep that goes on outlasts the test's patience.
    foreground(&mut guest, "sleep 1000", CTRL_C, "130");
    assert_eq!(guest.succeed("jobs"), "");
    foreground(&mut guest, "sleep 2000", CTRL_Z, "148");
    let jobs = guest.succeed("jobs");
    assert!(jobs.starts_with("[1]+  Stopped"), "{jobs}");
    guest.succeed("bg %1");
    let jobs = guest.succeed("jobs");
    assert!(jobs.contains("Running"), "{jobs}");
    foreground(&mut guest, "fg %1", CTRL_C, "130");
    assert_eq!(guest.succeed("jobs"), "");

    guest.succeed("{ sleep 3000 & }");
    guest.succeed("kill %1; wait");
    // Terminated jobs are told of once, before the prompt or by `jobs`.
    guest.succeed("wait; jobs");
    assert_eq!(guest.succeed("jobs"), "");
    assert_eq!(guest.shell("pidof sleep"), (1, String::new()));

    guest.send("poweroff\n");
    let ended = guest.end();
    assert_eq!(ended.said.status, 0, "{ended:?}");
    assert_eq!(ended.said.err, "roost: Ctrl-C goes to the guest; Ctrl-a x quits\n");
    ended.assert_l1_is_sound();
}

/// Runs a command in the foreground, types `key` when it runs, and waits for the prompt and the
/// exit status.
fn foreground(guest: &mut Session<'_>, command: &str, key: &str, status: &str) {
    guest.send(&format!("echo 'runs''now'; {command}\n"));
    guest.expect("runsnow\n");
    // The shell hands the terminal over a moment later; keys before that go to the shell.
    thread::sleep(Duration::from_secs(1));
    guest.send(key);
    guest.expect("# ");
    guest.send("echo 'stat''us' $?\n");
    guest.expect(&format!("status {status}\n"));
    guest.expect("# ");
}

/// Lines are edited in the guest's shell: cursor keys and history work.
#[test]
fn ctrl_a_x_quits_and_lines_can_be_edited() {
    let folder = Folder::new();
    let mut guest = shell(&folder);
    // Left arrow, then the missing letter.
    guest.send("echo wor''s\x1b[D\x1b[Dd\n");
    guest.expect("words");
    guest.send("\x01x");
    let ended = guest.end();
    assert_eq!(ended.said.status, 0, "{ended:?}");
}

/// A script on standard input is there before L1 has looked at its serial port.
#[test]
fn what_is_typed_ahead_waits_for_the_shell() {
    const LINES: usize = 60;
    let folder = Folder::new();
    let initrd = folder.busybox();
    let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd);
    let mut guest = run.append("console=hvc0 quiet").piped();
    let script: String =
        (0..LINES).map(|line| format!("echo \"line {line} of a\" script\n")).collect();
    guest.send(&script);
    for line in 0..LINES {
        guest.expect(&format!("line {line} of a script\n"));
    }
    guest.send("poweroff\n");
    guest.end().assert_powered_off();
}
