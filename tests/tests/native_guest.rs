//! Guests that others might write: the example kernel on the library `l2-guest`, and a kernel in C
//! on nothing but the header.

use roost_tests::{built, folder::Folder};
use std::{path::Path, process::Command};

/// Judges that `out` has these lines, in this order; others may come between.
fn assert_lines(out: &str, expected: &[&str]) {
    let mut lines = out.lines();
    for line in expected {
        assert!(lines.any(|found| found.starts_with(line)), "no `{line}` at its place in: {out}");
    }
}

#[test]
fn the_example_kernel() {
    let folder = Folder::new();
    // All that the emulator has, and neither FSGSBASE nor RDTSCP.
    for cpu in ["max", "qemu64"] {
        let run = folder.run(&built::example()).memory("64M").option("--cpu", cpu);
        let ended = run.append("some words").to_end();
        let expected = [
            "hello from supervisor mode",
            "64 MiB of memory, command line `some words`",
            "Roost ABI 1.0, offers ",
            "3 ticks",
            "hello from user mode",
            "a page for 0x80000feff8",
            "the program ended with 42",
            "the hypervisor was entered ",
            "powering off",
        ];
        assert_lines(&ended.said.out, &expected);
        ended.assert_powered_off();
    }
}

#[test]
fn the_example_kernel_waits_as_long_as_it_is_told() {
    let folder = Folder::new();
    // Asleep, and at work: then interrupts come between any two instructions.
    for (words, line) in [("ticks=25", "25 ticks"), ("busy ticks=500", "500 ticks")] {
        let ended = folder.run(&built::example()).memory("64M").append(words).to_end();
        assert_lines(&ended.said.out, &[line, "powering off"]);
        ended.assert_powered_off();
    }
}

#[test]
fn the_example_kernel_uses_a_second_vcpu() {
    let folder = Folder::new();
    // By turns, and at the same time.
    for cpus in ["1", "2"] {
        let run = folder.run(&built::example()).memory("64M").option("--vcpus", "2");
        let ended = run.option("--cpus", cpus).to_end();
        let expected = [
            "3 ticks",
            "hello from vCPU 1",
            "it says 500500",
            "hello from user mode",
            "powering off",
        ];
        assert_lines(&ended.said.out, &expected);
        ended.assert_powered_off();
    }
}

#[test]
fn the_example_kernel_panics_if_it_is_told() {
    let folder = Folder::new();
    let ended = folder.run(&built::example()).memory("64M").append("panic").to_end();
    assert!(ended.said.out.contains("panicked at"), "{}", ended.said.out);
    ended.assert_died("its kernel panicked: the command line asked for it");
}

/// The command with which `docs/guests.md` builds the guest in C.
fn documented_command(root: &Path) -> String {
    let text = std::fs::read_to_string(root.join("docs/guests.md")).expect("docs/guests.md");
    let from = text.find("\ncc ").expect("a command");
    let command = &text[from + 1..];
    command[..command.find("\n```").expect("its end")].to_owned()
}

/// Compiles a guest in C, as documented, into `folder`.
fn compile(folder: &Folder) -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let program = folder.path("c-guest");
    let command = documented_command(&root);
    let here = command.replace("target/c-guest", &program.to_string_lossy());
    assert_ne!(command, here, "it says where the program goes");
    // No header of a C library, and no warning.
    let own = "-nostdinc -isystem \"$(cc -print-file-name=include)\" -Wextra -Werror";
    let here = here.replacen("cc ", &format!("cc {own} "), 1);
    let done = Command::new("sh").args(["-c", &here]).current_dir(root).output();
    let done = done.expect("sh can be started");
    assert!(done.status.success(), "{here}: {}", String::from_utf8_lossy(&done.stderr));
    program
}

#[test]
fn a_kernel_in_c() {
    let folder = Folder::new();
    let ended = folder.run(&compile(&folder)).memory("64M").to_end();
    let expected = [
        "hello from C: 64 MiB of memory",
        "ABI version 1, a console",
        "exceptions: 1",
        "interrupts: 1",
        "bytes logged: 21",
        "no such call: ENOSYS",
    ];
    assert_lines(&ended.said.out, &expected);
    assert!(ended.log.contains(": a line of the C guest"), "{}", ended.log);
    ended.assert_powered_off();
}
