//! `roost install` on a system in a folder, and that system on a disk: its boot menu starts L1, with the
//! system itself as the guest.

use roost_tests::{
    built::Kernel,
    disk::{DRIVER, check, debugfs, host, text},
    folder::Folder,
    gpt::{self, SECTOR},
    machine::{CARD, CARD_AT, Drive, Firmware, Qemu},
    net,
    outcome::Said,
};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

const MIB: usize = 1 << 20;
const UUID: &str = "12345678-9abc-def0-1234-56789abcdef0";
const DISK: [u8; 16] = [0xd1; 16];
const DISK_TEXT: &str = "d1d1d1d1-d1d1-d1d1-d1d1-d1d1d1d1d1d1";
/// A virtio disk, and one of a SCSI controller, as /sys has them.
const DISK_SYS: &str = "devices/pci0000:00/0000:00:04.0/virtio1/block/vda";
const UNIT_SYS: &str =
    "devices/pci0000:00/0000:00:04.0/virtio1/host2/target2:0:0/2:0:0:0/block/sda";

/// The ramdisk's first program: it mounts the root file system that the command line names.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /root
mount -t proc proc /proc
mount -t devtmpfs dev /dev
insmod /xen-blkfront.ko
while ! [ -b /dev/xvda2 ]; do sleep 0.1; done
for word in $(cat /proc/cmdline); do
    case $word in root=*) root=$(findfs \"${word#root=}\") ;; esac
done
mount -t ext4 \"$root\" /root
exec switch_root /root /sbin/init
";

/// The system's.
const SYSTEM: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t sysfs sys /sys
/bin/busybox echo The system is up on $(/bin/busybox findfs UUID=12345678-9abc-def0-1234-56789abcdef0)
/bin/busybox cat /proc/cmdline
if ! [ -e /note ]; then
    /bin/busybox echo it was here > /note
    /bin/busybox sync
    /bin/busybox mount -o remount,ro /
    /bin/busybox reboot -f
fi
/bin/busybox insmod /xen-netfront.ko
while ! [ -e /sys/class/net/eth0 ]; do /bin/busybox sleep 0.1; done
/bin/busybox ip link set eth0 up
/bin/busybox udhcpc -n -q -t 8 -i eth0
/bin/busybox ip addr show eth0
/bin/busybox sync
/bin/busybox mount -o remount,ro /
/bin/busybox poweroff -f
";

/// A system as it runs, in the folder `root`, on the disk that /sys has in the folder `sys`.
fn system(folder: &Folder, sys: &str) -> PathBuf {
    let root = folder.path("root");
    let file = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("temporary folder");
        fs::write(path, bytes).expect("temporary folder");
    };
    let kernel = Kernel::Cloud;
    let release = kernel.release();
    folder.file("init", INIT.as_bytes());
    let drivers = [DRIVER, net::DRIVER];
    let initrd = folder.busybox_with_all(kernel, &drivers, &["--init", "init"]);
    file(&format!("boot/vmlinuz-{release}"), &fs::read(kernel.file()).expect("the kernel"));
    file(&format!("boot/initrd.img-{release}"), &fs::read(initrd).expect("the ramdisk"));
    file("boot/grub/grub.cfg", b"");
    file("etc/grub.d/00_header", b"#!/bin/sh\n");
    file("proc/sys/kernel/osrelease", release.as_bytes());
    let name = sys.rsplit('/').next().expect("a name");
    let mount = format!("22 1 254:2 / / rw - ext4 /dev/{name}2 rw\n");
    file("proc/self/mountinfo", mount.as_bytes());
    file(
        "proc/cmdline",
        format!("BOOT_IMAGE=/vmlinuz root=UUID={UUID} ro quiet console=ttyS0\n").as_bytes(),
    );
    file("proc/meminfo", b"MemTotal:  700000 kB\n");
    file("proc/cpuinfo", b"processor\t: 0\n");
    file("run/udev/data/b254:2", format!("E:ID_FS_UUID={UUID}\n").as_bytes());
    let table = format!("E:ID_PART_TABLE_TYPE=gpt\nE:ID_PART_TABLE_UUID={DISK_TEXT}\n");
    file("run/udev/data/b254:0", table.as_bytes());
    file(&format!("sys/{sys}/dev"), b"254:0\n");
    file(&format!("sys/{sys}/{name}2/partition"), b"2\n");
    let card = format!("sys/devices/pci0000:00/0000:00:{CARD_AT:02x}.0/virtio2");
    file(&format!("{card}/net/ens9/address"), format!("{CARD}\n").as_bytes());
    file(&format!("{card}/net/ens9/mtu"), b"1500\n");
    symlink("../..", root.join(&card).join("net/ens9/device")).expect("a link");
    fs::create_dir_all(root.join("sys/class/net")).expect("temporary folder");
    let target = format!("../../../{card}/net/ens9");
    symlink(target, root.join("sys/class/net/ens9")).expect("a link");
    let routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                  ens9 00000000 0202000A 0003 0 0 100 00000000 0 0 0\n";
    file("proc/net/route", routes.as_bytes());
    fs::create_dir_all(root.join("sys/dev/block")).expect("temporary folder");
    symlink(format!("../../{sys}/{name}2"), root.join("sys/dev/block/254:2")).expect("a link");
    root
}

fn install(folder: &Folder, arguments: &[&str]) -> Said {
    folder.roost(&[&["install", "--root", "root", "--memory", "256M"], arguments].concat())
}

fn says(said: &Said, words: &[&str]) {
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");
    for word in words {
        assert!(said.out.contains(word), "`{word}` is not in: {}", said.out);
    }
}

#[test]
fn it_is_said_done_and_undone() {
    let folder = Folder::new();
    let root = system(&folder, DISK_SYS);
    let files = ["boot/roost/l1", "boot/roost/bundle", "etc/grub.d/42_roost"];
    let there = || files.map(|name| root.join(name).exists());
    let entry = "menuentry 'Roost, with this system as its guest'";
    let disk = format!("gpt:{DISK_TEXT}, the whole disk vda");
    let card = format!("the card ens9 ({CARD})");
    says(&install(&folder, &[]), &["Nothing is written", entry, &disk, &card, "update-grub"]);
    assert_eq!(there(), [false; 3]);
    install(&folder, &["--undo"]).refuses(2, &["nothing to undo"]);
    says(&install(&folder, &["--apply"]), &["wrote root/boot/roost"]);
    assert_eq!(there(), [true; 3]);
    says(&install(&folder, &["--apply"]), &["wrote root/boot/roost"]);
    // What stands in the way of one file leaves the others as they are.
    let [l1, new, obstacle] =
        ["l1", "l1.new", "bundle.new"].map(|n| root.join("boot/roost").join(n));
    fs::write(&l1, "old").expect("temporary folder");
    fs::create_dir(&obstacle).expect("temporary folder");
    install(&folder, &["--apply"]).refuses(2, &["cannot write root/boot/roost/bundle"]);
    assert_eq!(fs::read(&l1).expect("L1"), b"old");
    assert!(!new.exists());
    fs::remove_dir(&obstacle).expect("it is ours");
    says(&install(&folder, &["--undo"]), &["removed root/boot/roost"]);
    assert_eq!(there(), [false; 3]);
    assert!(!root.join("boot/roost").exists());
    fs::remove_file(root.join("boot/grub/grub.cfg")).expect("it is ours");
    install(&folder, &["--apply"]).refuses(2, &["no GRUB below root"]);
    let folder = Folder::new();
    let root = system(&folder, DISK_SYS);
    let said = folder.roost(&["install", "--root", text(&root), "--memory", "690M"]);
    said.refuses(2, &["too little for L1 and a guest of 690 MiB"]);
}

/// GRUB for `platform`, whose menu is the system's own, in the file `name`.
fn grub(folder: &Folder, platform: &str, name: &str, more: &[&str]) -> PathBuf {
    let menu =
        format!("search --no-floppy --fs-uuid --set=root {UUID}\nconfigfile /boot/grub/grub.cfg\n");
    folder.file("early.cfg", menu.as_bytes());
    let [early, grub] = ["early.cfg", name].map(|name| folder.path(name));
    let words = ["-O", platform, "-p", "/", "-c", text(&early), "-o", text(&grub)];
    let modules = ["part_gpt", "ext2", "search", "search_fs_uuid", "configfile", "normal"];
    let others = ["multiboot2", "boot", "test", "part_msdos", "echo"];
    let _ = host("grub-mkimage", &[&words[..], &modules[..], &others[..], more].concat());
    grub
}

/// A FAT file system with GRUB for UEFI.
fn firmware_partition(folder: &Folder, sectors: u64) -> Vec<u8> {
    let grub = grub(folder, "x86_64-efi", "grub.efi", &["fat"]);
    let image = folder.path("esp.img");
    fs::write(&image, vec![0; sectors as usize * SECTOR]).expect("temporary file");
    let _ = host("mformat", &["-i", text(&image), "-T", &sectors.to_string(), "::"]);
    let _ = host("mmd", &["-i", text(&image), "::/EFI", "::/EFI/BOOT"]);
    let _ = host("mcopy", &["-i", text(&image), text(&grub), "::/EFI/BOOT/BOOTX64.EFI"]);
    fs::read(image).expect("the partition")
}

/// Puts GRUB for BIOS before the first partition, at sector `at`, as grub-bios-setup does.
fn put_bios_grub(folder: &Folder, disk: &mut [u8], at: u64, end: u64) {
    /// Bytes of the first sector that are code.
    const CODE: usize = 440;
    /// Where it has the sector of the rest, and that has the sector of what follows its own first.
    const NEXT: usize = 0x5c;
    const LIST: usize = 0x1f4;
    let mut boot = fs::read("/usr/lib/grub/i386-pc/boot.img").expect("package grub-pc-bin");
    boot[NEXT..NEXT + 8].copy_from_slice(&at.to_le_bytes());
    disk[..CODE].copy_from_slice(&boot[..CODE]);
    let mut core = fs::read(grub(folder, "i386-pc", "core.img", &["biosdisk"])).expect("GRUB");
    core[LIST..LIST + 8].copy_from_slice(&(at + 1).to_le_bytes());
    assert!(core.len() <= (end - at) as usize * SECTOR, "GRUB has {} bytes", core.len());
    disk[at as usize * SECTOR..][..core.len()].copy_from_slice(&core);
}

/// The disk of the system in `root`.
fn disk(folder: &Folder, root: &Path) -> PathBuf {
    let (first, second, end) = (2048, 2048 + 80 * 2048, 2048 + 80 * 2048 + 128 * 2048);
    // As the system's own program does it, of all scripts.
    let menu = host("sh", &[text(&root.join("etc/grub.d/42_roost"))]).stdout;
    let menu = [b"set default=roost\nset timeout=0\n", &menu[..]].concat();
    fs::write(root.join("boot/grub/grub.cfg"), menu).expect("temporary folder");
    let image = folder.path("root.img");
    fs::write(&image, []).expect("temporary file");
    let size = format!("{}K", (end - second) / 2);
    let words = ["-q", "-F", "-U", UUID, "-d", text(root), text(&image), &size];
    let _ = host("mkfs.ext4", &words);
    let mut disk = vec![0; (end as usize + 2048) * SECTOR];
    gpt::partition(&mut disk, DISK, &[("esp", first, second - 1), ("root", second, end - 1)]);
    let mut put = |at: u64, bytes: &[u8]| {
        disk[at as usize * SECTOR..][..bytes.len()].copy_from_slice(bytes);
    };
    put(first, &firmware_partition(folder, second - first));
    put(second, &fs::read(&image).expect("the file system"));
    put_bios_grub(folder, &mut disk, 64, first);
    folder.file("disk.img", &disk)
}

#[test]
fn the_menu_starts_l1_with_the_system_as_its_guest() {
    starts(Firmware::Uefi, Drive::Virtio("raw"), DISK_SYS);
}

#[test]
fn so_it_does_by_bios_on_a_scsi_disk() {
    starts(Firmware::Bios, Drive::Scsi("raw"), UNIT_SYS);
}

fn starts(firmware: Firmware, drive: Drive, sys: &str) {
    let folder = Folder::new();
    let root = system(&folder, sys);
    says(&install(&folder, &["--apply"]), &["wrote"]);
    // What the running kernel shows is on no disk.
    for name in ["proc", "sys", "run"] {
        fs::remove_dir_all(root.join(name)).expect("it is ours");
        fs::create_dir(root.join(name)).expect("it is ours");
    }
    for name in ["bin", "sbin", "dev", "tmp"] {
        fs::create_dir_all(root.join(name)).expect("temporary folder");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("package busybox-static");
    let module = "xen-netfront.ko";
    fs::copy(folder.path(module), root.join(module)).expect("temporary folder");
    fs::write(root.join("sbin/init"), SYSTEM).expect("temporary folder");
    let _ = host("chmod", &["755", text(&root.join("sbin/init")), text(&root.join("bin/busybox"))]);
    let disk = disk(&folder, &root);

    let machine = Qemu { firmware, drive, memory: 700, cpus: 1 };
    let ended = machine.boot_with_card(&folder, &disk).end_within(120);
    // The first of two starts ends with the machine's reset.
    assert_eq!(ended.said.out.matches("The system is up on /dev/xvda2").count(), 2, "{ended:?}");
    let ends = ["roost: guest 'system' asked for a restart", "roost: the machine starts again"];
    for words in ends {
        assert_eq!(ended.said.out.matches(words).count(), 1, "{words}: {ended:?}");
    }
    assert!(
        ended.said.out.contains(&format!("root=UUID={UUID} ro quiet console=hvc0")),
        "{ended:?}"
    );
    for words in ["lease of 10.0.2.15 obtained", &format!("link/ether {CARD}")] {
        assert!(ended.said.out.contains(words), "{words}: {ended:?}");
    }
    ended.assert_powered_off();
    assert!(ended.log.contains("guest 'system' powered off"), "{}", ended.log);
    let after = fs::read(&disk).expect("the disk");
    let second = (2048 + 80 * 2048) * SECTOR;
    let image = folder.file("after.img", &after[second..second + 128 * MIB]);
    check(&image);
    assert_eq!(debugfs(&image, "cat note"), "it was here\n");
}
