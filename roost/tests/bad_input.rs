//! Every wrong input ends at once with status 2 and one line that says what to do.

mod support;

use std::fs;
use support::{Bench, Said};

fn bench() -> Bench {
    Bench::with_l1(b"\xeb\xfe")
}

/// The run must be refused with a line that has all of `words`.
fn refused(said: &Said, words: &[&str]) {
    assert_eq!(said.status, 2, "{said:?}");
    for word in words {
        assert!(said.line().contains(word), "`{word}` is not in: {}", said.err);
    }
    assert!(said.line().starts_with("roost: "));
}

/// The command line itself must be refused; clap adds a hint in lines of its own.
fn misspelt(said: &Said, words: &[&str]) {
    assert_eq!(said.status, 2, "{said:?}");
    let first = said.err.lines().next().unwrap();
    for word in words {
        assert!(first.contains(word), "`{word}` is not in: {first}");
    }
}

#[test]
fn kernels() {
    let bench = bench();
    let kernel = |path: &str| Said::by(&mut bench.roost(&["run", "--kernel", path]));
    refused(&kernel("none"), &["kernel none", "No such file", "check the path"]);
    refused(&kernel("."), &["is a directory"]);
    refused(&kernel("/dev/zero"), &["not a regular file"]);
    bench.file("empty", b"");
    refused(&kernel("empty"), &["empty is empty"]);
    let mut arm = fs::read(bench.path("shim")).unwrap();
    arm[18] = 183;
    bench.file("arm", &arm);
    refused(&kernel("arm"), &["for another machine", "x86-64"]);
    bench.file("rd", b"070701");
    refused(&kernel("rd"), &["cpio archive"]);
}

#[test]
fn a_pipe_does_not_hang() {
    let bench = bench();
    let made = std::process::Command::new("mkfifo").arg(bench.path("pipe")).status().unwrap();
    assert!(made.success());
    refused(&bench.run(&["--initrd", "pipe"]), &["initrd pipe", "not a regular file"]);
}

#[test]
fn initrds() {
    let bench = bench();
    refused(&bench.run(&["--initrd", "none"]), &["initrd none", "No such file"]);
    bench.file("empty", b"");
    refused(&bench.run(&["--initrd", "empty"]), &["is empty"]);
    let large = bench.file("large", b"");
    fs::File::options().write(true).open(large).unwrap().set_len(40 << 20).unwrap();
    let said = bench.run(&["--initrd", "large"]);
    refused(&said, &["initrd (40 MiB)", "do not fit in 64 MiB", "--memory 81M"]);
}

#[test]
fn memory() {
    let bench = bench();
    let memory =
        |size: &str| Said::by(&mut bench.roost(&["run", "--kernel", "kernel", "--memory", size]));
    misspelt(&memory("lots"), &["'lots'", "512M or 2G"]);
    misspelt(&memory("1.5G"), &["512M or 2G"]);
    misspelt(&memory("99999K"), &["whole MiB"]);
    refused(&memory("63M"), &["63 MiB is too small", "at least 64 MiB"]);
    refused(&memory("0"), &["too small"]);
    refused(&memory("900000G"), &["too much", "this machine has"]);
    refused(&memory("17179869183G"), &["too much"]);
}

#[test]
fn cpus() {
    let bench = bench();
    misspelt(&bench.run(&["--cpus", "0"]), &["'0'", "--cpus", "1..=64"]);
    misspelt(&bench.run(&["--cpus", "65"]), &["'65'", "--cpus", "1..=64"]);
    misspelt(&bench.run(&["--vcpus", "0"]), &["'0'", "--vcpus", "1..=32"]);
    misspelt(&bench.run(&["--vcpus", "33"]), &["'33'", "--vcpus", "1..=32"]);
    misspelt(&bench.run(&["--cpus", "two"]), &["'two'"]);
    refused(&bench.run(&["--cpus", "2", "--icount"]), &["--cpus 2", "--icount", "drop one"]);
}

#[test]
fn command_lines() {
    let long = "x".repeat(1024);
    refused(&bench().run(&["--append", &long]), &["1024 bytes", "at most 1023"]);
}

#[test]
fn images_not_built() {
    let bench = bench();
    let l1 = bench.path("l1");
    fs::remove_file(bench.path("shim")).unwrap();
    refused(&bench.run(&[]), &["shim image not found at", "run `make` first"]);
    fs::remove_file(&l1).unwrap();
    let at = format!("not found at {}", l1.display());
    refused(&bench.run(&[]), &["L1 image", &at, "run `make` first"]);
}

#[test]
fn qemu_absent_or_another_program() {
    let bench = bench();
    let said = Said::by(bench.roost(&["run", "--kernel", "kernel"]).env("PATH", bench.path("")));
    refused(&said, &["qemu-system-x86_64 not found", "install the package qemu-system-x86"]);
    refused(&bench.run(&["--qemu", "/nowhere/qemu"]), &["/nowhere/qemu", "check --qemu"]);
    refused(&bench.run(&["--qemu", "/bin/echo"]), &["/bin/echo is no QEMU"]);
}

#[test]
fn instructions_are_not_counted_under_kvm() {
    let args = ["run", "--kernel", "none", "--icount", "--accel", "kvm"];
    refused(&Said::by(&mut bench().roost(&args)), &["--icount", "--accel kvm"]);
}

#[test]
fn places_that_cannot_be_written() {
    let bench = bench();
    refused(&bench.run(&["--l1-log", "/nowhere/log"]), &["--l1-log", "cannot be written"]);
    refused(&bench.run(&["--l1-log", "/dev/null"]), &["not a regular file"]);
    refused(&bench.run(&["--stats=json:/nowhere/s"]), &["--stats=json", "cannot be written"]);
    misspelt(&bench.run(&["--stats=csv"]), &["--stats=json:FILE"]);
    let said = Said::by(bench.roost(&["run", "--kernel", "kernel"]).env("TMPDIR", "/nowhere"));
    refused(&said, &["temporary folder", "TMPDIR"]);
}

#[test]
fn limits_of_no_time() {
    misspelt(&bench().run(&["--timeout", "0"]), &["--timeout"]);
}

#[test]
fn qemu_refuses_a_model() {
    let said = bench().run(&["--cpu", "abacus"]);
    assert_eq!(said.status, 2, "{said:?}");
    assert!(said.err.contains("abacus") && said.err.contains("check --machine and --cpu"));
}
