//! Whole runs in QEMU, with a few instructions in the place of L1.

mod support;

use pv_abi::bundle::exit;
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};
use std::{
    fs::{self, File},
    io::{Read, Write},
    process::{Child, Stdio},
};
use support::{Bench, CONSOLE, LOG, Said, TRIPLE_FAULT, echo_one, end, module_magic, say};

fn l1(parts: &[&[u8]]) -> Bench {
    Bench::with_l1(&parts.concat())
}

#[test]
fn a_guest_that_powers_off() {
    let bench = l1(&[&module_magic(), &say(LOG, "up\n"), &end(exit::POWEROFF)]);
    let said = bench.run(&[]);
    assert_eq!((said.status, said.out.as_str(), said.err.as_str()), (0, "RoostBdl", ""));
    assert!(bench.left_behind().is_empty());
}

#[test]
fn a_guest_that_restarts() {
    let said = l1(&[&end(exit::REBOOT)]).run(&[]);
    assert_eq!(said.status, 0);
    assert!(said.line().contains("asked for a restart"));
}

#[test]
fn a_guest_that_dies() {
    let words = "starting\n@report vCPU 0: triple fault\n@report at 0x10\n";
    let bench = l1(&[&say(LOG, words), &end(exit::GUEST_DIED)]);
    let said = bench.run(&[]);
    assert_eq!(said.status, 3);
    let lines: Vec<_> = said.err.lines().collect();
    let [first, second, died, log] = lines[..] else { panic!("{said:?}") };
    assert_eq!(first, "roost: vCPU 0: triple fault");
    assert_eq!(second, "roost: at 0x10");
    assert_eq!(died, "roost: the guest died");
    let log = log.strip_prefix("roost: L1's log is in ").unwrap();
    assert_eq!(fs::read_to_string(log).unwrap(), words);
    assert_eq!(bench.left_behind().len(), 1);
}

#[test]
fn a_guest_that_does_not_start() {
    let said = l1(&[&end(exit::BOOT_FAILED)]).run(&[]);
    assert_eq!(said.status, 3);
    assert!(said.err.contains("could not be started"));
}

#[test]
fn an_l1_that_fails() {
    let failed = l1(&[&say(LOG, "panic\n"), &end(exit::L1_FAILED)]);
    let said = failed.run(&["--l1-log", "log"]);
    assert_eq!(said.status, 4);
    assert!(said.err.contains("L1 failed") && said.err.contains("log is in log"));
    assert_eq!(fs::read_to_string(failed.path("log")).unwrap(), "panic\n");
    assert!(failed.left_behind().is_empty());

    let said = l1(&[&TRIPLE_FAULT]).run(&[]);
    assert_eq!(said.status, 4);
    assert!(said.err.contains("the machine reset itself"));
}

#[test]
fn a_run_that_takes_too_long() {
    let said = l1(&[b"\xeb\xfe"]).run(&["--timeout", "1"]);
    assert_eq!(said.status, 124);
    assert!(said.err.contains("the time limit passed"));
}

#[test]
fn counted_instructions() {
    let said = l1(&[&end(exit::POWEROFF)]).run(&["--icount"]);
    assert_eq!((said.status, said.err.as_str()), (0, ""));
}

#[test]
fn what_tcg_lacks_is_not_worth_a_line() {
    let said = l1(&[&end(exit::POWEROFF)]).run(&["--cpu", "EPYC-v3"]);
    assert_eq!((said.status, said.err.as_str()), (0, ""));
}

#[test]
fn the_console_takes_input() {
    let bench = l1(&[&echo_one(), &end(exit::POWEROFF)]);
    let mut command = bench.roost(&["run", "--kernel", "kernel", "--accel", "tcg"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"w").unwrap();
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!((said.status, said.out.as_str()), (0, "w"));
}

#[test]
fn statistics() {
    let json = r#"{"guests":[{"name":"g","exits":{"hypercall":{"count":2}},"new":1}]}"#;
    let bench = l1(&[&say(LOG, &format!("@stats {json}\n")), &end(exit::POWEROFF)]);
    let table = bench.run(&["--stats"]);
    assert_eq!(table.status, 0);
    assert!(table.err.starts_with("guest g\n") && table.err.contains("hypercall"), "{table:?}");
    let file = bench.run(&["--stats=json:out.json"]);
    assert_eq!((file.status, file.err.as_str()), (0, ""));
    assert_eq!(fs::read_to_string(bench.path("out.json")).unwrap(), format!("{json}\n"));

    let none = l1(&[&end(exit::POWEROFF)]).run(&["--stats"]);
    assert!(none.line().contains("L1 gave no statistics"));
}

#[test]
fn the_command_line_of_qemu_is_shown() {
    let said = l1(&[&end(exit::POWEROFF)]).run(&["--verbose"]);
    assert!(said.err.contains("memory 115 MiB = guest 64 MiB + L1 51 MiB"), "{said:?}");
    assert!(said.err.contains("-m 115 "));
}

#[test]
fn a_signal_ends_qemu_too() {
    let bench = l1(&[&say(CONSOLE, "!"), b"\xeb\xfe"]);
    let mut command = bench.roost(&["run", "--kernel", "kernel", "--accel", "tcg"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&mut child, b'!');
    let pid = child.id().to_string();
    let killed = std::process::Command::new("sh").args(["-c", "kill $0", &pid]).status().unwrap();
    assert!(killed.success());
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!(said.status, 143);
    assert!(said.err.contains("ended by signal 15"));
}

/// Reads the console until `byte`.
fn wait_for(child: &mut Child, byte: u8) {
    let mut seen = [0];
    let console = child.stdout.as_mut().unwrap();
    while seen[0] != byte {
        console.read_exact(&mut seen).unwrap();
    }
}

/// A run at a terminal: types `keys` when the stand-in has said "!".
fn at_a_terminal(bench: &Bench, keys: &[u8]) -> Said {
    at_a_terminal_with(bench, |keyboard, _| keyboard.write_all(keys).unwrap())
}

/// A run at a terminal: calls `act` with the keyboard and the tool's process id when the stand-in
/// has said "!".
fn at_a_terminal_with(bench: &Bench, act: impl FnOnce(&mut File, u32)) -> Said {
    let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&keyboard).unwrap();
    unlockpt(&keyboard).unwrap();
    let name = ptsname(&keyboard, Vec::new()).unwrap();
    let terminal = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let before = tcgetattr(&terminal).unwrap();
    assert!(before.local_modes.contains(LocalModes::ICANON));

    let mut command = bench.roost(&["run", "--kernel", "kernel", "--accel", "tcg"]);
    command.stdin(terminal.try_clone().unwrap());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&mut child, b'!');
    act(&mut File::from(keyboard.try_clone().unwrap()), child.id());
    let said = Said::from(child.wait_with_output().unwrap());
    let after = tcgetattr(&terminal).unwrap();
    assert_eq!(before.local_modes, after.local_modes, "the terminal is as it was");
    said
}

#[test]
fn ctrl_a_x_quits() {
    let bench = l1(&[&say(LOG, "up\n"), &say(CONSOLE, "!"), b"\xeb\xfe"]);
    let said = at_a_terminal(&bench, b"\x01x");
    assert_eq!(said.status, 0, "{said:?}");
    assert_eq!(said.line(), "roost: Ctrl-C goes to the guest; Ctrl-a x quits");
    assert!(bench.left_behind().is_empty());
}

#[test]
fn ctrl_c_goes_to_the_guest() {
    let said =
        at_a_terminal(&l1(&[&say(CONSOLE, "!"), &echo_one(), &end(exit::POWEROFF)]), b"\x03");
    assert_eq!((said.status, said.out.as_str()), (0, "\x03"));
}

#[test]
fn a_reset_at_a_terminal_is_a_failure() {
    let said = at_a_terminal(&l1(&[&say(CONSOLE, "!"), &echo_one(), &TRIPLE_FAULT]), b"x");
    assert_eq!(said.status, 4, "{said:?}");
    assert!(said.err.contains("the machine reset itself"));
}

#[test]
fn a_killed_qemu_leaves_the_terminal_usable() {
    let bench = l1(&[&say(CONSOLE, "!"), b"\xeb\xfe"]);
    let said = at_a_terminal_with(&bench, |_, roost| {
        let children = fs::read_to_string(format!("/proc/{roost}/task/{roost}/children")).unwrap();
        let [qemu] = children.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("one child, not `{children}`")
        };
        let killed = std::process::Command::new("sh").args(["-c", "kill -9 $0", qemu]).status();
        assert!(killed.unwrap().success());
    });
    assert_eq!(said.status, 4);
    assert!(said.err.contains("QEMU died"));
}
