//! What `roost initrd` writes, and what it refuses.

mod support;

use std::{fs, os::unix::fs::PermissionsExt, process::Command};
use support::{Bench, Said, dynamic_program};

fn bench() -> Bench {
    Bench::with_l1(b"\xeb\xfe")
}

fn initrd(bench: &Bench, args: &[&str]) -> Said {
    let mut all = vec!["initrd", "--output", "rd"];
    all.extend(args);
    Said::by(&mut bench.roost(&all))
}

/// Permissions and names as the system's cpio would show them, from the archive's headers.
fn listing(archive: &[u8]) -> Vec<(u32, String)> {
    let (mut at, mut found) = (0, Vec::new());
    loop {
        let header = std::str::from_utf8(&archive[at..at + 110]).unwrap();
        assert_eq!(&header[..6], "070701");
        let field = |index: usize| {
            let start = 6 + 8 * index;
            u32::from_str_radix(&header[start..start + 8], 16).unwrap()
        };
        let (name_len, len) = (field(11) as usize, field(6) as usize);
        let name = std::str::from_utf8(&archive[at + 110..at + 110 + name_len - 1]).unwrap();
        if name == "TRAILER!!!" {
            return found;
        }
        found.push((field(1), name.to_owned()));
        at = (at + 110 + name_len).next_multiple_of(4);
        at = (at + len).next_multiple_of(4);
    }
}

#[test]
fn files_of_every_source() {
    let bench = bench();
    bench.file("script", b"#!/bin/sh\n");
    fs::create_dir_all(bench.path("tree/etc")).unwrap();
    bench.file("tree/etc/motd", b"hi");
    let tool = bench.file("tree/tool", b"x");
    fs::set_permissions(tool, fs::Permissions::from_mode(0o711)).unwrap();
    std::os::unix::fs::symlink("tool", bench.path("tree/link")).unwrap();
    let args = ["--init", "script", "--dir", "tree", "--add", "script=/a/b:600"];
    let said = initrd(&bench, &args);
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    let archive = fs::read(bench.path("rd")).unwrap();
    let expected = [
        (0o040_755, "a"),
        (0o100_600, "a/b"),
        (0o040_755, "dev"),
        (0o020_600, "dev/console"),
        (0o020_666, "dev/null"),
        (0o020_666, "dev/zero"),
        (0o040_755, "etc"),
        (0o100_644, "etc/motd"),
        (0o100_755, "init"),
        (0o120_777, "link"),
        (0o100_755, "tool"),
    ];
    assert_eq!(listing(&archive), expected.map(|(mode, name)| (mode, name.to_owned())));

    assert_eq!(initrd(&bench, &args).status, 0);
    assert_eq!(fs::read(bench.path("rd")).unwrap(), archive, "the same files, the same bytes");
}

#[test]
fn a_busybox_brings_its_applets() {
    let bench = bench();
    let said = initrd(&bench, &["--busybox"]);
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    let names = listing(&fs::read(bench.path("rd")).unwrap());
    for expected in [
        (0o100_755, "bin/busybox"),
        (0o120_777, "bin/sh"),
        (0o120_777, "bin/mount"),
        (0o120_777, "bin/cttyhack"),
        (0o100_755, "init"),
        (0o041_777, "tmp"),
    ] {
        assert!(names.contains(&(expected.0, expected.1.to_owned())), "{expected:?}");
    }
}

#[test]
fn the_first_program_is_a_valid_script() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/init.sh");
    let checked = Command::new("sh").args(["-n", script]).status().unwrap();
    assert!(checked.success());
}

#[test]
fn what_cannot_be_made_is_refused() {
    let bench = bench();
    bench.file("f", b"x");
    let dynamic = dynamic_program().to_str().unwrap();
    for (args, words) in [
        (&["--add", "f=/f"][..], "nothing would start"),
        (&["--init", "none"], "cannot add none"),
        (&["--init", "."], "not a regular file"),
        (&["--init", "f", "--dir", "f"], "f is not a folder"),
        (&["--init", "f", "--add", "f=../f"], "leads out of"),
        (&["--init", "f", "--add", "f=/dev"], "both as a file and as a folder"),
        (&["--busybox", "none"], "install the package busybox-static"),
        (&["--busybox", "./f"], "another machine, or damaged"),
        (&["--busybox", dynamic], "needs libraries"),
    ] {
        let said = initrd(&bench, args);
        assert_eq!(said.status, 2, "{args:?}: {said:?}");
        assert!(said.line().contains(words), "`{words}` is not in: {}", said.err);
        assert!(!bench.path("rd").exists(), "{args:?} left a ramdisk");
    }
    let said = Said::by(&mut bench.roost(&["initrd", "--output", "no/rd", "--init", "f"]));
    assert_eq!(said.status, 2);
    assert!(said.line().contains("cannot write no/rd: check --output"));
    assert_eq!(initrd(&bench, &["--init", "f", "--add", "f=/x:9"]).status, 2);
}
