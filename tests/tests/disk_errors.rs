//! Disks that fail: the guest is told, and nothing else goes wrong.

use roost_tests::{
    built::{self, Kernel},
    disk::{ramdisk, with_disk_module},
    folder::Folder,
    qemu,
    tap::Report,
};
use std::path::{Path, PathBuf};

/// What QEMU's `blkdebug` fails: a sector to be read, one to be written (for want of room), flushes.
const ERRORS: &str = "\
[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"100\"\n\
[inject-error]\nevent = \"write_aio\"\nerrno = \"28\"\nsector = \"101\"\n\
[inject-error]\nevent = \"flush_to_disk\"\nerrno = \"5\"\n";

/// Has QEMU fail what `errors` says of the disk in the file `name`.
fn failing(folder: &Folder, name: &str, errors: &str) -> PathBuf {
    qemu::changed(folder, &injecting(folder, name, errors))
}

/// The commands of `sed` for that.
fn injecting(folder: &Folder, name: &str, errors: &str) -> String {
    let settings = folder.file("errors", errors.as_bytes());
    let path = folder.path(name);
    let (settings, path) = (settings.display(), path.display());
    format!("s|if=none,file=[^,]*{name},|if=none,file=blkdebug:{settings}:{path},|")
}

/// Two native guests: one with the disk of this name, which makes this check, and one whose disks are
/// as they should be, which makes all checks of disks.
fn beside_another(folder: &Folder, name: &str, check: &str) -> String {
    for file in ["bad.img", "good.img", "fixed.img"] {
        folder.file(file, &[0; 1 << 20]);
    }
    let kernel = built::conformance();
    let guest = |guest: &str, words: &str, disks: &str| {
        format!(
            "[[guest]]\nname = \"{guest}\"\nkernel = \"{}\"\nmemory = \"64M\"\nvcpus = 2\n\
             append = \"patient {words}\"\n{disks}",
            kernel.display()
        )
    };
    let disk = |file: &str, more: &str| format!("[[guest.disk]]\nfile = \"{file}\"\n{more}\n");
    let bad =
        guest("bad", &format!("only={check}"), &disk("bad.img", &format!("name = \"{name}\"")));
    let good = disk("good.img", "") + &disk("fixed.img", "read-only = true");
    format!("console = \"prefix\"\n{bad}{}", guest("good", "only=disk", &good))
}

/// What a guest has said, without its name before each line.
fn said(out: &str, guest: &str) -> Report {
    let before = format!("{guest}| ");
    let lines = out.lines().filter_map(|line| line.strip_prefix(&before));
    let text = lines.map(|line| format!("{line}\n")).collect::<String>();
    let report = Report::parse(&text);
    report.assert_passed(&text);
    report
}

#[test]
fn errors_of_the_machines_disk_reach_the_guest() {
    errors_reach_the_guest(qemu::changed, "disk roost0");
}

#[test]
fn so_do_those_of_a_unit_of_a_controller() {
    errors_reach_the_guest(qemu::with_scsi, "disk at 00:01.0, unit 0:0");
}

/// L1's log calls the device `name`.
fn errors_reach_the_guest(machine: impl Fn(&Folder, &str) -> PathBuf, name: &str) {
    let folder = Folder::new();
    let config = beside_another(&folder, "failing", "disk.machine_errors");
    let config = folder.file("roost.toml", config.as_bytes());
    let qemu = machine(&folder, &injecting(&folder, "bad.img", ERRORS));
    let ended = folder.run_config(&config).option("--qemu", &qemu).limit(240).to_end();
    ended.assert_powered_off();
    assert!(said(&ended.said.out, "bad").has_passed("disk.machine_errors"), "{ended:?}");
    let good = said(&ended.said.out, "good");
    assert!(good.has_passed("disk.write_and_read"), "{ended:?}");
    assert_eq!(
        ended.log.matches(&format!("{name}: Read at sector 100 fails")).count(),
        1,
        "{}",
        ended.log
    );
}

/// A disk that answers no more is noticed though it is all that anybody waits for, and meanwhile another
/// guest has the processor: there is only one.
#[test]
fn a_disk_that_dies_is_given_up() {
    let folder = Folder::new();
    let config = beside_another(&folder, "dying", "disk.machine_disk_dies");
    let config = folder.file("roost.toml", config.as_bytes());
    // After so many bytes it is as slow as one byte a second.
    let slow = "throttling.bps-total=1,throttling.bps-total-max=12000";
    let qemu =
        qemu::changed(&folder, &format!("s|if=none,\\(file=[^,]*bad.img\\)|if=none,{slow},\\1|"));
    let ended = folder.run_config(&config).option("--qemu", &qemu).limit(240).to_end();
    ended.assert_powered_off();
    assert!(said(&ended.said.out, "bad").has_passed("disk.machine_disk_dies"), "{ended:?}");
    assert!(said(&ended.said.out, "good").has_passed("disk.write_and_read"), "{ended:?}");
    let at = |words: &str| {
        ended.log.find(words).unwrap_or_else(|| panic!("no `{words}`: {}", ended.log))
    };
    assert!(at("guest 'good' powered off") < at("disk roost0: does not answer"), "{}", ended.log);
    assert!(!ended.log.contains("disk roost1: does not"), "{}", ended.log);
}

#[test]
fn errors_reach_linux() {
    let folder = Folder::new();
    folder.file("bad.img", &[0; 1 << 20]);
    let qemu = failing(&folder, "bad.img", ERRORS);
    let kernel = Kernel::Cloud;
    let initrd = ramdisk(&folder, kernel);
    let run = folder.run(&kernel.file()).initrd(&initrd).option("--disk", Path::new("bad.img"));
    let mut guest = run.option("--qemu", &qemu).append("console=hvc0 quiet").piped();
    guest.expect_shell();
    with_disk_module(&mut guest);
    let (status, said) = guest.shell("dd if=/dev/xvda of=/dev/null bs=512 skip=100 count=1 2>&1");
    assert!(status != 0 && said.contains("I/O error"), "{said}");
    guest.succeed("dd if=/dev/xvda of=/dev/null bs=4096 skip=20 count=1 2>&1");
    let write = "dd if=/dev/zero of=/dev/xvda bs=4096 count=1 conv=fsync";
    let (status, said) = guest.shell(&format!("{write} seek=12 2>&1"));
    assert!(status != 0, "sector 101 is in it: {said}");
    // Linux says nothing of the flush that failed, so nothing can be written afterwards.
    let (status, said) = guest.shell(&format!("{write} seek=20 2>&1"));
    let (again, said_again) = guest.shell(&format!("{write} seek=21 2>&1"));
    assert!(status != 0 || again != 0, "{said}{said_again}");
    guest.succeed("dd if=/dev/xvda of=/dev/null bs=4096 skip=30 count=1 2>&1");
    guest.send("poweroff\n");
    guest.end().assert_powered_off();
}
