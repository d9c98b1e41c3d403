//! Wrong input ends with the documented status, one clear line and nothing left behind.
//!
//! The tool's own tests cover what it sees itself with stand-ins for the images; here are the
//! real images, and what only the guest's side can see.

use flate2::{Compression, write::GzEncoder};
use roost_tests::{built::Kernel, folder::Folder};
use std::{
    fs::{self, File},
    io::Write,
};

/// `roost run` with a stock kernel and these arguments refuses with status 2.
fn run_refused(folder: &Folder, arguments: &[&str], words: &[&str]) {
    let kernel = Kernel::Cloud.file();
    let kernel = ["run", "--kernel", kernel.to_str().unwrap()];
    folder.roost(&[&kernel, arguments].concat()).refuses(2, words);
}

/// The same, where the command line itself is wrong: hints may follow in lines of their own.
fn run_misspelt(folder: &Folder, arguments: &[&str], words: &[&str]) {
    let kernel = Kernel::Cloud.file();
    let said = folder.roost(&[&["run", "--kernel", kernel.to_str().unwrap()], arguments].concat());
    assert_eq!((said.status, said.out.as_str()), (2, ""), "{said:?}");
    let line = said.err.lines().next().unwrap_or_default();
    for word in words {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
}

/// The tool sees that the file is no kernel: status 2.
fn kernel_refused(folder: &Folder, name: &str, words: &[&str]) {
    folder.roost(&["run", "--kernel", name]).refuses(2, words);
}

/// The guest's side finds out: status 3, the reason first.
fn kernel_not_started(folder: &Folder, name: &str, words: &[&str]) {
    let ended = folder.run(&folder.path(name)).to_end();
    let err = &ended.said.err;
    assert_eq!((ended.said.status, ended.said.out.as_str()), (3, ""), "{err}");
    let line = err.lines().next().unwrap_or_default();
    assert!(line.starts_with(&format!("roost: guest '{name}' could not be started: ")), "{err}");
    for word in words {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
    assert_eq!(err.lines().nth(1), Some("roost: the guest could not be started"), "{err}");
    ended.assert_l1_is_sound();
}

#[test]
fn files_that_are_no_kernels() {
    let folder = Folder::new();
    let mut elf = fs::read("/proc/self/exe").unwrap();
    elf[4] = 1;
    folder.file("elf32", &elf);
    folder.file("script", b"#!/bin/sh\n");
    folder.file("empty", b"");
    let before = folder.names();
    kernel_refused(&folder, "absent", &["kernel absent", "No such file", "check the path"]);
    kernel_refused(&folder, ".", &["kernel .", "is a directory"]);
    kernel_refused(&folder, "empty", &["kernel empty", "is empty"]);
    kernel_refused(&folder, "elf32", &["kernel elf32", "32-bit", "x86-64 is needed"]);
    kernel_refused(&folder, "script", &["kernel script", "is a script", "x86-64 kernel"]);
    assert_eq!(folder.names(), before);
}

#[test]
fn damaged_kernels() {
    let folder = Folder::new();
    let kernel = fs::read(Kernel::Cloud.file()).unwrap();
    folder.file("short", &kernel[..kernel.len() / 2]);
    folder.file("header", &kernel[..400]);
    let mut corrupt = kernel;
    let middle = corrupt.len() / 2;
    corrupt[middle..middle + 64].fill(0xff);
    folder.file("corrupt", &corrupt);
    kernel_not_started(&folder, "short", &["cut short", "copy it again"]);
    kernel_not_started(&folder, "header", &["not a kernel", "vmlinuz"]);
    kernel_not_started(&folder, "corrupt", &["damaged", "copy it again"]);
}

#[test]
fn kernels_of_another_kind() {
    let folder = Folder::new();
    folder.file("noise", &[0x90; 4096]);
    kernel_not_started(&folder, "noise", &["not a kernel", "vmlinuz"]);
    folder.file("no-notes", &bzimage(&gzip(&elf_without_notes())));
    kernel_not_started(&folder, "no-notes", &["CONFIG_XEN_PV"]);
    folder.file("elf-without-notes", &elf_without_notes());
    kernel_not_started(&folder, "elf-without-notes", &["CONFIG_XEN_PV"]);
    folder.file("unknown-packing", &bzimage(b"BZh91AY&SY and more"));
    kernel_not_started(&folder, "unknown-packing", &["bzip2", "gzip, xz, lz4 or zstd"]);
    assert_eq!(
        folder.names(),
        ["elf-without-notes", "l1.log", "no-notes", "noise", "stats.json", "unknown-packing"],
        "only log and statistics, which were asked for, are left"
    );
}

/// A gzip file with the size word of kernel images.
fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A bzImage of boot protocol 2.15 (Documentation/arch/x86/boot.rst) around `payload`.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SETUP_SECTORS: u8 = 4;
    const CODE: usize = 32;
    let mut file = vec![0; (usize::from(SETUP_SECTORS) + 1) * 512 + CODE];
    file[0x1f1] = SETUP_SECTORS;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    file[0x236] = 1;
    file[0x248..0x24c].copy_from_slice(&(CODE as u32).to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend(payload);
    file
}

/// An x86-64 ELF file with one segment, at 16 MiB, of a kernel built without Xen support.
fn elf_without_notes() -> Vec<u8> {
    const PLACE: u64 = 16 << 20;
    let code = [0xf4; 4096];
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
    for field in [PLACE, 64, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, read and execute
    for field in [120, 0xffff_ffff_8100_0000, PLACE, code.len() as u64, code.len() as u64, 4096] {
        file.extend(field.to_le_bytes());
    }
    file.extend(code);
    file
}

#[test]
fn ramdisks() {
    let folder = Folder::new();
    File::create(folder.path("large")).unwrap().set_len(300 << 20).unwrap();
    folder.file("empty", b"");
    let before = folder.names();
    run_refused(&folder, &["--initrd", "absent"], &["initrd absent", "No such file"]);
    run_refused(&folder, &["--initrd", "empty"], &["initrd empty", "is empty"]);
    let words = ["initrd (300 MiB)", "do not fit in 512 MiB", "use --memory"];
    run_refused(&folder, &["--initrd", "large"], &words);
    run_refused(&folder, &["--initrd", "large", "--memory", "128M"], &["128 MiB"]);
    assert_eq!(folder.names(), before);
}

#[test]
fn numbers_and_words() {
    let folder = Folder::new();
    run_refused(&folder, &["--memory", "63M"], &["--memory", "63 MiB is too small", "64 MiB"]);
    run_refused(&folder, &["--memory", "900000G"], &["--memory", "too much", "use less"]);
    run_misspelt(&folder, &["--memory", "much"], &["--memory", "'much'", "512M or 2G"]);
    run_misspelt(&folder, &["--cpus", "0"], &["--cpus", "1..=64"]);
    run_misspelt(&folder, &["--vcpus", "33"], &["--vcpus", "1..=32"]);
    run_refused(&folder, &["--cpus", "3", "--icount"], &["--cpus 3", "drop one"]);
    run_misspelt(&folder, &["--cpus", "-1"], &["'-1'"]);
    run_misspelt(&folder, &["--cpus", "1.5"], &["--cpus", "'1.5'"]);
    run_refused(&folder, &["--append", &"x".repeat(5000)], &["--append", "at most 1023"]);
    run_misspelt(&folder, &["--no-such-option"], &["'--no-such-option'"]);
    run_misspelt(&folder, &["--timeout", "0"], &["--timeout", "'0'"]);
    run_misspelt(&folder, &["--accel", "xen"], &["--accel", "'xen'"]);
    run_refused(&folder, &["--accel", "kvm", "--icount"], &["--icount", "--accel kvm"]);
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn surroundings() {
    let folder = Folder::new();
    let words = ["QEMU not found at /nonexistent", "check --qemu"];
    run_refused(&folder, &["--qemu", "/nonexistent"], &words);
    run_refused(&folder, &["--qemu", "/bin/true"], &["/bin/true is no QEMU"]);
    let words = ["--l1-log /nonexistent/log cannot be written", "name another file"];
    run_refused(&folder, &["--l1-log", "/nonexistent/log"], &words);
    let words = ["--stats=json /nonexistent/stats cannot be written", "name another file"];
    run_refused(&folder, &["--stats=json:/nonexistent/stats"], &words);
    // Nothing is left of a place that can be written either.
    run_refused(&folder, &["--stats=json:s", "--l1-log", "/nonexistent/log"], &["--l1-log"]);
    run_misspelt(&folder, &["--stats=xml"], &["--stats", "json:FILE"]);
    assert_eq!(folder.names(), [""; 0]);
}

/// QEMU itself refuses: its message comes first.
#[test]
fn machines_that_qemu_does_not_know() {
    let folder = Folder::new();
    for (option, said_by_qemu) in [("--cpu", "abacus"), ("--machine", "machine type")] {
        let kernel = Kernel::Cloud.file();
        let arguments = ["run", "--accel", "tcg", "--kernel", kernel.to_str().unwrap()];
        let said = folder.roost(&[&arguments[..], &[option, "abacus"]].concat());
        assert_eq!((said.status, said.out.as_str()), (2, ""), "{said:?}");
        assert!(said.err.contains(said_by_qemu), "{said:?}");
        assert!(said.err.ends_with("check --machine and --cpu\n"), "{said:?}");
    }
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn ramdisks_that_cannot_be_made() {
    let folder = Folder::new();
    let initrd = |arguments: &[&str], words: &[&str]| {
        folder.roost(&[&["initrd"], arguments].concat()).refuses(2, words);
    };
    initrd(&["--output", "o"], &["nothing would start", "--init or --busybox"]);
    initrd(&["--output", "o", "--init", "absent"], &["absent", "check the path"]);
    initrd(&["--output", "o", "--busybox", "absent"], &["absent not found", "busybox-static"]);
    initrd(&["--output", "o", "--busybox", "/proc/self/exe"], &["/proc/self/exe"]);
    initrd(&["--output", "o", "--busybox", "--dir", "absent"], &["absent", "--dir"]);
    initrd(&["--output", "no/o", "--busybox"], &["no/o", "check --output"]);
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn machines_that_cannot_run_roost() {
    let folder = Folder::new();
    let said = folder.roost(&["check", "--qemu", "/nonexistent"]);
    assert_eq!((said.status, said.err.as_str()), (1, ""), "{said:?}");
    assert!(said.out.starts_with("FAIL  qemu "), "{said:?}");
    assert!(said.out.contains("/nonexistent") && said.out.ends_with("cannot run here.\n"));
    assert_eq!(folder.roost(&["check"]).status, 0);
    assert_eq!(folder.roost(&["check", "--colour"]).status, 2);
    assert_eq!(folder.names(), [""; 0]);
}
