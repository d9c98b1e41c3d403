//! `roost install` on a system in a folder, and that system on a disk: its boot menu starts L1, with the
//! system itself as the guest.

use roost_tests::{
    built::Kernel,
    disk::{DRIVER, check, debugfs, host, text},
    folder::Folder,
    gpt::{self, SECTOR},
    machine::{Drive, Firmware, Qemu, assert_powered_off},
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
const SYS: &str = "devices/pci0000:00/0000:00:04.0/virtio1/block/vda";

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
/bin/busybox echo The system is up on $(/bin/busybox findfs UUID=12345678-9abc-def0-1234-56789abcdef0)
/bin/busybox cat /proc/cmdline
/bin/busybox echo it was here > /note
/bin/busybox sync
/bin/busybox mount -o remount,ro /
/bin/busybox poweroff -f
";

/// A system as it runs, in the folder `root`.
fn system(folder: &Folder) -> PathBuf {
    let root = folder.path("root");
    let file = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("temporary folder");
        fs::write(path, bytes).expect("temporary folder");
    };
    let kernel = Kernel::Cloud;
    let release = kernel.release();
    folder.file("init", INIT.as_bytes());
    let initrd = folder.busybox_with(kernel, DRIVER, &["--init", "init"]);
    file(&format!("boot/vmlinuz-{release}"), &fs::read(kernel.file()).expect("the kernel"));
    file(&format!("boot/initrd.img-{release}"), &fs::read(initrd).expect("the ramdisk"));
    file("boot/grub/grub.cfg", b"");
    file("etc/grub.d/00_header", b"#!/bin/sh\n");
    file("proc/sys/kernel/osrelease", release.as_bytes());
    file("proc/self/mountinfo", b"22 1 254:2 / / rw - ext4 /dev/vda2 rw\n");
    file(
        "proc/cmdline",
        format!("BOOT_IMAGE=/vmlinuz root=UUID={UUID} ro quiet console=ttyS0\n").as_bytes(),
    );
    file("proc/meminfo", b"MemTotal:  700000 kB\n");
    file("proc/cpuinfo", b"processor\t: 0\n");
    file("run/udev/data/b254:2", format!("E:ID_FS_UUID={UUID}\n").as_bytes());
    let table = format!("E:ID_PART_TABLE_TYPE=gpt\nE:ID_PART_TABLE_UUID={DISK_TEXT}\n");
    file("run/udev/data/b254:0", table.as_bytes());
    file(&format!("sys/{SYS}/dev"), b"254:0\n");
    file(&format!("sys/{SYS}/vda2/partition"), b"2\n");
    fs::create_dir_all(root.join("sys/dev/block")).expect("temporary folder");
    symlink(format!("../../{SYS}/vda2"), root.join("sys/dev/block/254:2")).expect("a link");
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
    let root = system(&folder);
    let files = ["boot/roost/l1", "boot/roost/bundle", "etc/grub.d/42_roost"];
    let there = || files.map(|name| root.join(name).exists());
    let entry = "menuentry 'Roost, with this system as its guest'";
    let disk = format!("gpt:{DISK_TEXT}, the whole disk vda");
    says(&install(&folder, &[]), &["Nothing is written", entry, &disk, "update-grub"]);
    assert_eq!(there(), [false; 3]);
    install(&folder, &["--undo"]).refuses(2, &["nothing to undo"]);
    says(&install(&folder, &["--apply"]), &["wrote root/boot/roost"]);
    assert_eq!(there(), [true; 3]);
    says(&install(&folder, &["--apply"]), &["wrote root/boot/roost"]);
    says(&install(&folder, &["--undo"]), &["removed root/boot/roost"]);
    assert_eq!(there(), [false; 3]);
    assert!(!root.join("boot/roost").exists());
    fs::remove_file(root.join("boot/grub/grub.cfg")).expect("it is ours");
    install(&folder, &["--apply"]).refuses(2, &["no GRUB below root"]);
    let folder = Folder::new();
    let root = system(&folder);
    let said = folder.roost(&["install", "--root", text(&root), "--memory", "690M"]);
    said.refuses(2, &["too little for L1 and a guest of 690 MiB"]);
}

/// A FAT file system with GRUB for UEFI, whose menu is the system's own.
fn firmware_partition(folder: &Folder, sectors: u64) -> Vec<u8> {
    let menu =
        format!("search --no-floppy --fs-uuid --set=root {UUID}\nconfigfile /boot/grub/grub.cfg\n");
    folder.file("early.cfg", menu.as_bytes());
    let [early, grub, image] = ["early.cfg", "grub.efi", "esp.img"].map(|name| folder.path(name));
    let modules = ["part_gpt", "fat", "ext2", "search", "search_fs_uuid", "configfile", "normal"];
    let more = ["multiboot2", "boot", "test", "part_msdos", "echo"];
    let words = ["-O", "x86_64-efi", "-p", "/", "-c", text(&early), "-o", text(&grub)];
    let _ = host("grub-mkimage", &[&words[..], &modules[..], &more[..]].concat());
    fs::write(&image, vec![0; sectors as usize * SECTOR]).expect("temporary file");
    let _ = host("mformat", &["-i", text(&image), "-T", &sectors.to_string(), "::"]);
    let _ = host("mmd", &["-i", text(&image), "::/EFI", "::/EFI/BOOT"]);
    let _ = host("mcopy", &["-i", text(&image), text(&grub), "::/EFI/BOOT/BOOTX64.EFI"]);
    fs::read(image).expect("the partition")
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
    folder.file("disk.img", &disk)
}

#[test]
fn the_menu_starts_l1_with_the_system_as_its_guest() {
    let folder = Folder::new();
    let root = system(&folder);
    says(&install(&folder, &["--apply"]), &["wrote"]);
    // What the running kernel shows is on no disk.
    for name in ["proc", "sys", "run"] {
        fs::remove_dir_all(root.join(name)).expect("it is ours");
        fs::create_dir(root.join(name)).expect("it is ours");
    }
    for name in ["bin", "sbin", "dev"] {
        fs::create_dir_all(root.join(name)).expect("temporary folder");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("package busybox-static");
    fs::write(root.join("sbin/init"), SYSTEM).expect("temporary folder");
    let _ = host("chmod", &["755", text(&root.join("sbin/init")), text(&root.join("bin/busybox"))]);
    let disk = disk(&folder, &root);

    let machine =
        Qemu { firmware: Firmware::Uefi, drive: Drive::Virtio("raw"), memory: 700, cpus: 1 };
    let ended = machine.boot(&folder, &disk).end_within(120);
    assert!(ended.said.out.contains("The system is up on /dev/xvda2"), "{ended:?}");
    assert!(
        ended.said.out.contains(&format!("root=UUID={UUID} ro quiet console=hvc0")),
        "{ended:?}"
    );
    assert_powered_off(&ended);
    let after = fs::read(&disk).expect("the disk");
    let second = (2048 + 80 * 2048) * SECTOR;
    let image = folder.file("after.img", &after[second..second + 128 * MIB]);
    check(&image);
    assert_eq!(debugfs(&image, "cat note"), "it was here\n");
}
