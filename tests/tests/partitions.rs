//! Partitions: a guest gets its own and nothing beside it, of a file, of the disk that L1 boots from, or of
//! another disk of the machine.

use roost_tests::{
    built::{self, Kernel},
    disk::{check, debugfs, file_system, ramdisk, text, with_disk_module},
    folder::Folder,
    gpt::{self, SECTOR},
    machine::{Drive, Firmware, Qemu, assert_powered_off},
    tap::Report,
};
use std::fs;

const MIB: usize = 1 << 20;
const DISK: [u8; 16] = [0xd1; 16];
/// GUIDs of the disk and of its second partition, as text.
const DISK_TEXT: &str = "d1d1d1d1-d1d1-d1d1-d1d1-d1d1d1d1d1d1";
const SECOND_TEXT: &str = "02020202-0202-0202-0202-020202020202";

/// A disk of three partitions of 1 MiB each, full of ones but for its tables.
fn three() -> Vec<u8> {
    let mut disk = vec![1; 5 * MIB];
    let partitions = [("first", 2048, 4095), ("mine", 4096, 6143), ("last", 6144, 8191)];
    gpt::partition(&mut disk, DISK, &partitions);
    disk
}

/// The checks of disks pass on `disk`; what is beside the second partition stays as it is.
fn stays_within(disk: &str) {
    let folder = Folder::new();
    let before = three();
    let image = folder.file("disk.img", &before);
    folder.file("fixed.img", &[0; MIB]);
    let run = folder.run(&built::conformance()).memory("64M").vcpus(2).append("only=disk patient");
    let run = run.option("--disk", disk).option("--disk", "fixed.img,ro");
    let ended = run.limit(240).to_end();
    Report::parse(&ended.said.out).assert_passed(&ended.said.out);
    ended.assert_powered_off();
    let after = fs::read(image).expect("the disk");
    assert!(after[..2 * MIB] == before[..2 * MIB], "what is before it has changed");
    assert!(after[3 * MIB..] == before[3 * MIB..], "what is after it has changed");
    assert!(after[2 * MIB..3 * MIB] != before[2 * MIB..3 * MIB], "nothing was written");
}

#[test]
fn by_number_label_and_identifier() {
    for part in ["2", "mine", SECOND_TEXT] {
        stays_within(&format!("disk.img,part={part}"));
    }
}

/// Guests that are refused, and why.
#[test]
fn what_is_not_there_or_taken_is_refused() {
    let folder = Folder::new();
    let mut twice = three();
    gpt::partition(&mut twice, DISK, &[("mine", 2048, 4095), ("mine", 4096, 4097)]);
    let mut overlapping = three();
    gpt::partition(&mut overlapping, DISK, &[("first", 2048, 4095), ("mine", 4000, 5000)]);
    let mut outside = three();
    gpt::partition(&mut outside, DISK, &[("first", 2048, 4095), ("mine", 5000, 10240)]);
    let mut damaged = three();
    let end = damaged.len();
    for at in [2 * SECTOR + 8, end - 33 * SECTOR + 8] {
        damaged[at] ^= 1;
    }
    for (disk, part, why) in [
        (three(), "4", "the disk has no such partition"),
        (three(), "other", "the disk has no such partition"),
        (twice, "mine", "or several of that label"),
        (overlapping, "2", "its partition 2 overlaps another"),
        (outside, "2", "its partition 2 is not within the disk"),
        (damaged, "2", "its partition table is damaged"),
        (vec![0; MIB], "1", "it has no GUID partition table"),
    ] {
        folder.file("disk.img", &disk);
        let run = folder.run(&built::conformance()).memory("64M");
        let ended = run.option("--disk", format!("disk.img,part={part}")).to_end();
        assert_eq!(ended.said.status, 3, "{ended:?}");
        let words = "could not be started: the disk of slot 0: ";
        assert!(ended.said.err.contains(words) && ended.said.err.contains(why), "{ended:?}");
    }
    folder.file("disk.img", &three());
    let kernel = built::conformance();
    for (first, second, refused) in [("1", "\"first\"", true), ("1", "3", false)] {
        let guest = |name: &str, part: &str| {
            format!(
                "[[guest]]\nname = \"{name}\"\nkernel = \"{}\"\nmemory = \"64M\"\n\
                 append = \"only=start\"\n[[guest.disk]]\nfile = \"disk.img\"\npartition = {part}\n",
                kernel.display()
            )
        };
        let text = guest("one", first) + &guest("two", second);
        let config = folder.file("roost.toml", text.as_bytes());
        let ended = folder.run_config(&config).to_end();
        assert_eq!(ended.said.status, if refused { 3 } else { 0 }, "{ended:?}");
        let words = "guest 'two' could not be started: its disk 'disk0' is on sectors of a disk of guest 'one'";
        assert_eq!(ended.said.err.contains(words), refused, "{ended:?}");
    }
}

/// A disk in the image that L1 boots from, and one that the machine has beside it.
#[test]
fn images_have_disks() {
    for (firmware, name, drive) in [
        (Firmware::Bios, "roost.qcow2", Drive::Virtio("qcow2")),
        (Firmware::Uefi, "roost.raw", Drive::Scsi("raw")),
    ] {
        let folder = Folder::new();
        let data = file_system(&folder, "data.img", 16 * MIB as u64);
        folder.file("from-host", b"hello\n");
        let _ = debugfs(&data, &format!("write {} from-host", text(&folder.path("from-host"))));
        let kernel = Kernel::Cloud;
        let (initrd, kernel) = (ramdisk(&folder, kernel), kernel.file());
        let arguments =
            ["image", "--output", name, "--kernel", text(&kernel), "--initrd", text(&initrd)];
        let more = ["--append", "console=hvc0 quiet", "--memory=256M", "--disk", "data.img"];
        let said = folder.roost(&[&arguments[..], &more[..]].concat());
        assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");
        let memory = said.out.trim().parse().expect("MiB");
        let machine = Qemu { firmware, drive, memory, cpus: 1 };
        for round in ["one", "two"] {
            let mut guest = machine.boot(&folder, &folder.path(name));
            guest.expect_shell();
            with_disk_module(&mut guest);
            guest.succeed("mkdir /mnt && mount -t ext4 /dev/xvda /mnt");
            assert_eq!(guest.succeed("cat /mnt/from-host"), "hello\n");
            assert_eq!(guest.shell("cat /mnt/one").0 == 0, round == "two");
            guest.succeed(&format!("echo {round} > /mnt/{round} && umount /mnt"));
            guest.send("poweroff\n");
            assert_powered_off(&guest.end());
        }
        if drive == Drive::Scsi("raw") {
            // The last partition begins at a whole MiB, and is followed by the table's copy.
            let image = fs::read(folder.path(name)).expect("the image");
            let start = (image.len() - 16 * MIB) / MIB * MIB;
            folder.file("data.img", &image[start..start + 16 * MIB]);
            check(&data);
            assert_eq!(debugfs(&data, "cat two"), "two\n");
        }
    }
}

#[test]
fn disks_of_the_machine_are_named() {
    let folder = Folder::new();
    folder.file("disk.img", &three());
    let kernel = built::conformance();
    let kernel = text(&kernel);
    let roost = |arguments: &[&str]| folder.roost(&[arguments, &["--kernel", kernel]].concat());
    let image = |name: &str, disk: &str| roost(&["image", "--output", name, "--disk", disk]);
    image("x.iso", "disk.img").refuses(2, &["disk disk.img cannot be on x.iso", ".raw or .qcow2"]);
    image("x.raw", "disk.img,part=1").refuses(2, &["`part` cannot be used"]);
    roost(&["run", "--disk", "disk=serial:x"]).refuses(2, &["`roost image` and --pack"]);
    roost(&["run", "--pack", "x", "--disk", "disk.img"]).refuses(2, &["disk=serial:NAME"]);
    let said = roost(&["run", "--pack", "x", "--disk", "disk=serial:x,part=1"]);
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");

    // QEMU's first virtio disk has no serial; its table and its place on the bus are its own.
    for disk in [
        format!("disk=gpt:{DISK_TEXT}"),
        format!("disk=any,part={SECOND_TEXT}"),
        "disk=pci:02.0".into(),
    ] {
        let arguments = ["image", "--output", "x.iso", "--kernel", kernel, "--memory", "64M"];
        let words = ["--append", "only=disk.slots,disk.refused", "--disk", &disk];
        let said = folder.roost(&[&arguments[..], &words[..]].concat());
        assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");
        let memory = said.out.trim().parse().expect("MiB");
        let machine = Qemu { firmware: Firmware::Bios, drive: Drive::Cd, memory, cpus: 1 };
        let ended = machine.boot_beside(&folder, &folder.path("x.iso"), &["disk.img"]).end();
        let report = Report::parse(&ended.said.out);
        report.assert_passed(&ended.said.out);
        assert!(report.has_passed("disk.refused"), "{ended:?}");
        assert_powered_off(&ended);
    }
}
