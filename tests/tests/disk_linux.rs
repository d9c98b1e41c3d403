//! Stock kernels find their disks, keep files on them that outlive the guest, and read what the host
//! has put there.

use roost_tests::{
    built::Kernel,
    disk::{check, debugfs, file_system, ramdisk, text, with_disk_module},
    folder::Folder,
};
use std::{fmt::Write, os::unix::fs::MetadataExt};

const MIB: u64 = 1 << 20;

/// The text that `seq 1 COUNT` prints.
fn numbers(count: u32) -> String {
    (1..=count).fold(String::new(), |mut all, number| {
        writeln!(all, "{number}").expect("room in a string");
        all
    })
}

/// Reads a file of the host's, writes one that the host reads.
fn files_outlive_the_guest(kernel: Kernel, vcpus: u32) {
    let folder = Folder::new();
    let image = file_system(&folder, "disk.img", 64 * MIB);
    let from_host = folder.file("from-host", numbers(30_000).as_bytes());
    let _ = debugfs(&image, &format!("write {} from-host", text(&from_host)));

    let initrd = ramdisk(&folder, kernel);
    let run = folder.run(&kernel.file()).initrd(&initrd).option("--disk", &image);
    let mut guest = run.append("console=hvc0 quiet").cpus(vcpus).vcpus(vcpus).piped();
    guest.expect_shell();
    with_disk_module(&mut guest);
    assert_eq!(guest.succeed("cat /sys/block/xvda/size"), format!("{}\n", 64 * MIB / 512));
    guest.succeed("mkdir /mnt && mount -t ext4 /dev/xvda /mnt");
    guest.succeed("seq 1 30000 | cmp - /mnt/from-host");
    guest.succeed("seq 1 50000 > /mnt/numbers && echo it was here > /mnt/note && sync");
    // What is read afterwards comes from the disk.
    guest.succeed("echo 3 > /proc/sys/vm/drop_caches && seq 1 50000 | cmp - /mnt/numbers");
    guest.succeed("umount /mnt");
    let (status, found) =
        guest.shell("dmesg | grep -E 'WARNING: |BUG: |Oops|Call Trace|I/O error'");
    assert_eq!((status, found.as_str()), (1, ""));
    guest.send("poweroff\n");
    guest.end().assert_powered_off();

    check(&image);
    assert_eq!(debugfs(&image, "cat note"), "it was here\n");
    assert!(debugfs(&image, "cat numbers") == numbers(50_000), "the file has other contents");
}

#[test]
fn files_outlive_a_guest_of_6_1() {
    files_outlive_the_guest(Kernel::Cloud, 1);
}

#[test]
fn files_outlive_a_guest_of_6_12_with_two_vcpus() {
    files_outlive_the_guest(Kernel::Cloud612, 2);
}

/// Each of four vCPUs writes and reads by a queue of its own, from the kernel's to L1's; all at once.
#[test]
fn each_vcpu_has_a_queue() {
    const VCPUS: u32 = 4;
    let folder = Folder::new();
    let image = file_system(&folder, "disk.img", 64 * MIB);
    let kernel = Kernel::Cloud;
    let initrd = ramdisk(&folder, kernel);
    let run = folder.run(&kernel.file()).initrd(&initrd).option("--disk", &image);
    let mut guest = run.append("console=hvc0 quiet").cpus(2).vcpus(VCPUS).piped();
    guest.expect_shell();
    with_disk_module(&mut guest);
    let queues =
        guest.succeed("cd /sys/block/xvda/mq && for q in *; do echo $q $(cat $q/cpu_list); done");
    assert_eq!(queues, "0 0\n1 1\n2 2\n3 3\n");
    guest.succeed("mkdir /mnt && mount -t ext4 /dev/xvda /mnt && mkdir /memory && mount -t tmpfs none /memory");
    // 512 KiB, different for each; by requests of 8 KiB that nobody but the one who makes them sends.
    guest.succeed("for q in 0 1 2 3; do seq 1${q}00000 1${q}65535 > /memory/$q; done");
    let by_each = |command: &str| {
        format!(
            "(for q in 0 1 2 3; do taskset $((1 << q)) sh -c \"{command}\" & all=\"$all $!\"; done; \
             for one in $all; do wait $one || exit 1; done)"
        )
    };
    guest.succeed(&by_each("dd if=/memory/$q of=/mnt/$q bs=8k oflag=direct"));
    guest.succeed(&by_each("dd if=/mnt/$q bs=8k iflag=direct | cmp - /memory/$q"));
    guest.succeed("umount /mnt");
    let (status, found) =
        guest.shell("dmesg | grep -E 'WARNING: |BUG: |Oops|Call Trace|I/O error'");
    assert_eq!((status, found.as_str()), (1, ""));
    guest.send("poweroff\n");
    let ended = guest.end();
    ended.assert_powered_off();
    let stats = ended.stats.expect("statistics");
    for queue in 0..VCPUS {
        let taken = stats.counter(&format!("disk_queue_{queue}"));
        assert!(taken >= 2 * 64, "queue {queue}: {taken} requests, {stats:?}");
    }

    check(&image);
    for queue in 0..VCPUS {
        let first = 1_000_000 + 100_000 * queue;
        let text: String = (first..first + 65_536).map(|number| format!("{number}\n")).collect();
        assert!(debugfs(&image, &format!("cat {queue}")) == text, "file {queue}");
    }
}

#[test]
fn several_disks_one_of_which_is_not_to_be_written() {
    let folder = Folder::new();
    let first = file_system(&folder, "first.img", 16 * MIB);
    let second = file_system(&folder, "second.img", 8 * MIB);
    let _ = debugfs(&second, "mkdir found");
    let before = std::fs::read(&second).expect("the image");

    let kernel = Kernel::Cloud;
    let initrd = ramdisk(&folder, kernel);
    let run = folder.run(&kernel.file()).initrd(&initrd).option("--disk", &first);
    let run = run.option("--disk", format!("{},ro", text(&second)));
    let mut guest = run.append("console=hvc0 quiet").piped();
    guest.expect_shell();
    guest.succeed("insmod /xen-blkfront.ko");
    guest.succeed("while ! [ -b /dev/xvda -a -b /dev/xvdb ]; do sleep 0.1; done");
    let sizes = guest.succeed("cat /sys/block/xvda/size /sys/block/xvdb/size");
    assert_eq!(sizes, format!("{}\n{}\n", 16 * MIB / 512, 8 * MIB / 512));
    assert_eq!(guest.succeed("cat /sys/block/xvda/ro /sys/block/xvdb/ro"), "0\n1\n");
    let (status, _) = guest.shell("echo something > /dev/xvdb");
    assert_ne!(status, 0, "it may not be written");
    guest.succeed("mkdir /first /second");
    guest.succeed("mount -t ext4 /dev/xvda /first && mount -t ext4 -o ro /dev/xvdb /second");
    guest.succeed("test -d /second/found && echo copied > /first/file");
    // The front end lets go, in the middle of it all; the kernel goes on.
    guest.succeed("umount /first /second");
    guest.succeed("echo vbd-51712 > /sys/bus/xen/drivers/vbd/unbind");
    assert_eq!(guest.shell("test -b /dev/xvda").0, 1);
    guest.send("poweroff\n");
    guest.end().assert_powered_off();

    check(&first);
    assert_eq!(debugfs(&first, "cat file"), "copied\n");
    assert!(std::fs::read(&second).expect("the image") == before, "it was written");
}

/// What the kernel gives back takes no room on the host any more.
#[test]
fn what_is_discarded_takes_no_room() {
    let folder = Folder::new();
    let image = file_system(&folder, "disk.img", 64 * MIB);
    let room = || std::fs::metadata(&image).expect("the image").blocks() * 512;
    let before = room();
    let kernel = Kernel::Cloud;
    let initrd = ramdisk(&folder, kernel);
    let run = folder.run(&kernel.file()).initrd(&initrd).option("--disk", &image);
    let mut guest = run.append("console=hvc0 quiet").piped();
    guest.expect_shell();
    with_disk_module(&mut guest);
    guest.succeed("mkdir /mnt && mount -t ext4 /dev/xvda /mnt");
    guest.succeed(
        "tr '\\0' x < /dev/zero | dd of=/mnt/file bs=1M count=24 iflag=fullblock conv=fsync",
    );
    let written = room();
    assert!(written > before + 20 * MIB, "{before}, {written}");
    guest.succeed("rm /mnt/file && sync && fstrim /mnt && umount /mnt");
    guest.send("poweroff\n");
    guest.end().assert_powered_off();
    let after = room();
    assert!(after < before + 8 * MIB, "{before}, {written}, {after}");
    check(&image);
}

#[test]
fn without_disks_there_is_no_store() {
    let folder = Folder::new();
    let initrd = folder.busybox();
    let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd);
    let mut guest = run.append("console=hvc0 quiet").piped();
    guest.expect_shell();
    assert_eq!(guest.succeed("ls /sys/bus/xen/devices"), "");
    let (status, _) = guest.shell("dmesg | grep -E 'Grant table initialized|xenbus_probe'");
    assert_eq!(status, 1);
    guest.send("poweroff\n");
    guest.end().assert_powered_off();
}
