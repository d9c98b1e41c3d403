//! Images boot on machines with either firmware, from CD and disk, and end by themselves.

use roost_tests::{
    built::{self, Kernel},
    disk,
    folder::Folder,
    machine::{CARD, Drive, Firmware, Qemu, assert_powered_off},
    net,
    tap::Report,
};
use std::{
    fs,
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

/// Writes an image with a stock kernel and a shell.
fn stock_image(folder: &Folder, name: &str) -> u32 {
    let memory = image_of(folder, name, &folder.busybox(), &[]);
    // Nothing but the image is left beside the ramdisk.
    assert_eq!(folder.names(), ["busybox.cpio", name]);
    memory
}

/// Writes an image with a stock kernel and this ramdisk; the machine's memory in MiB.
fn image_of(folder: &Folder, name: &str, initrd: &Path, words: &[&str]) -> u32 {
    let kernel = Kernel::Cloud.file();
    let arguments = [
        "image",
        "--output",
        name,
        "--kernel",
        kernel.to_str().expect("a plain path"),
        "--initrd",
        initrd.to_str().expect("a plain path"),
        "--append",
        "console=hvc0 quiet",
        "--memory=256M",
    ];
    let said = folder.roost(&[&arguments, words].concat());
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");
    said.out.trim().parse().expect("the machine's memory in MiB")
}

/// Boots a stock kernel from an image to a shell, and powers off.
fn boots(name: &str, firmware: Firmware, drive: Drive, cpus: u32) {
    let folder = Folder::new();
    let memory = stock_image(&folder, name);
    let machine = Qemu { firmware, drive, memory, cpus };
    let mut guest = machine.boot(&folder, &folder.path(name));
    guest.expect_shell();
    assert_eq!(guest.succeed("uname -r").trim_end(), Kernel::Cloud.release());
    // What was packed has come through whole: loaders put it where L1 might write.
    let packed = Command::new("sh").args(["-c", "md5sum <\"$(command -v busybox)\""]).output();
    let packed = String::from_utf8(packed.expect("md5sum").stdout).expect("text");
    assert_eq!(guest.succeed("md5sum </bin/busybox"), packed);
    // The image does not know when it is started; the machine's clock does.
    let date: u64 = guest.succeed("date +%s").trim().parse().expect("seconds");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(now.abs_diff(date) < 60, "{date}, not {now}");
    guest.send("poweroff\n");
    let ended = guest.end();
    assert_powered_off(&ended);
    if cpus > 1 {
        assert!(ended.log.contains(&format!("{cpus} CPUs")), "{}", ended.log);
    }
}

#[test]
fn bios_and_cd() {
    boots("roost.iso", Firmware::Bios, Drive::Cd, 2);
}

#[test]
fn bios_and_disk() {
    boots("roost.qcow2", Firmware::Bios, Drive::Disk("qcow2"), 1);
}

#[test]
fn uefi_and_cd() {
    boots("roost.iso", Firmware::Uefi, Drive::Cd, 1);
}

#[test]
fn uefi_and_disk() {
    boots("roost.raw", Firmware::Uefi, Drive::Disk("raw"), 2);
}

/// Whatever address the machine's card has, the guest's has it too.
#[test]
fn a_card_that_nobody_has_named() {
    let folder = Folder::new();
    let words = net::add_script(&folder);
    let initrd = folder.busybox_with(Kernel::Cloud, net::DRIVER, &words);
    let memory = image_of(&folder, "x.iso", &initrd, &["--net", "card"]);
    let machine = Qemu { firmware: Firmware::Bios, drive: Drive::Cd, memory, cpus: 1 };
    let mut guest = machine.boot_with_card(&folder, &folder.path("x.iso"));
    guest.expect_shell();
    net::load(&mut guest, "eth0");
    net::dhcp(&mut guest);
    let link = guest.succeed("ip link show eth0");
    assert!(link.contains(&format!("link/ether {CARD}")), "{link}");
    guest.send("poweroff\n");
    assert_powered_off(&guest.end());

    let ended = machine.boot(&folder, &folder.path("x.iso")).end();
    assert!(ended.said.out.contains("roost: guest"), "{ended:?}");
    assert!(ended.log.contains("network card: the machine lacks its card"), "{}", ended.log);
}

/// A disk behind a bridge, and a card behind three.
const BEHIND: [[&str; 2]; 8] = [
    ["-device", "pcie-root-port,id=first,chassis=1,addr=2"],
    ["-drive", "if=none,id=behind,format=raw,file=disk.img"],
    ["-device", "virtio-blk-pci,drive=behind,bus=first"],
    ["-device", "pcie-root-port,id=second,chassis=2,addr=3"],
    ["-device", "x3130-upstream,id=switch,bus=second"],
    ["-device", "xio3130-downstream,id=below,bus=switch,chassis=3"],
    ["-netdev", "user,id=net"],
    ["-device", "virtio-net-pci,netdev=net,bus=below,romfile="],
];

fn bridges(firmware: Firmware) {
    let folder = Folder::new();
    let words = net::add_script(&folder);
    let modules = [disk::DRIVER, net::DRIVER];
    let initrd = folder.busybox_with_all(Kernel::Cloud, &modules, &words);
    let devices = ["--net", "card", "--disk", "disk=pci:01:00.0"];
    let memory = image_of(&folder, "x.iso", &initrd, &devices);
    folder.file("disk.img", &[b'a'; 1 << 20]);
    let machine = Qemu { firmware, drive: Drive::Cd, memory, cpus: 1 };
    let mut guest = machine.boot_with(&folder, &folder.path("x.iso"), BEHIND.as_flattened());
    guest.expect_shell();
    disk::with_disk_module(&mut guest);
    guest.succeed("head -c 5 /dev/xvda | grep -x aaaaa");
    guest.succeed("printf written | dd of=/dev/xvda bs=512 seek=2047 conv=fsync");
    net::load(&mut guest, "eth0");
    net::dhcp(&mut guest);
    guest.send("poweroff\n");
    assert_powered_off(&guest.end());
    let after = fs::read(folder.path("disk.img")).expect("the disk");
    assert_eq!(after[2047 * 512..][..8], *b"writtena");
}

#[test]
fn behind_bridges_by_bios() {
    bridges(Firmware::Bios);
}

#[test]
fn behind_bridges_by_uefi() {
    bridges(Firmware::Uefi);
}

/// A native guest of several that a file describes.
#[test]
fn guests_of_a_file() {
    let folder = Folder::new();
    let kernel = built::conformance();
    let config = format!(
        "[[guest]]\nname = \"one\"\nkernel = \"{}\"\nmemory = \"64M\"\nappend = \"only=start\"\n",
        kernel.display()
    );
    folder.file("vms.toml", config.as_bytes());
    let said = folder.roost(&["image", "--config", "vms.toml", "--output", "x.iso"]);
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");
    let memory = said.out.trim().parse().expect("MiB");
    let machine = Qemu { firmware: Firmware::Bios, drive: Drive::Cd, memory, cpus: 1 };
    let ended = machine.boot(&folder, &folder.path("x.iso")).end();
    Report::parse(&ended.said.out).assert_passed(&ended.said.out);
    assert_powered_off(&ended);
}

/// L1 alone says on both ports what is missing, and switches the machine off.
#[test]
fn without_a_module() {
    let folder = Folder::new();
    for name in ["medium", "medium/boot", "medium/boot/grub"] {
        fs::create_dir(folder.path(name)).expect("temporary folder");
    }
    folder.file("medium/boot/grub/grub.cfg", b"multiboot2 /boot/l1\nboot\n");
    let l1 = built::conformance().with_file_name("l1");
    fs::copy(l1, folder.path("medium/boot/l1")).expect("temporary folder");
    let made = Command::new("grub-mkrescue")
        .args(["--locales=", "--fonts=", "--themes=", "-o", "x.iso", "medium"])
        .current_dir(folder.path(""))
        .output()
        .expect("grub-mkrescue");
    assert!(made.status.success(), "{made:?}");
    let machine = Qemu { firmware: Firmware::Bios, drive: Drive::Cd, memory: 128, cpus: 1 };
    let ended = machine.boot(&folder, &folder.path("x.iso")).end();
    let words = "L1 was started without a boot module";
    assert!(ended.said.out.contains(&format!("roost: {words}")), "{ended:?}");
    assert!(ended.log.contains(&format!("@report {words}")), "{ended:?}");
    assert_eq!(ended.said.status, 0, "{ended:?}");
}

#[test]
fn what_cannot_be_written_is_refused() {
    let folder = Folder::new();
    let kernel = built::conformance();
    let kernel = kernel.to_str().expect("a plain path");
    let image = |arguments: &[&str]| {
        folder.roost(&[&["image", "--kernel", kernel, "--memory=64M"], arguments].concat())
    };
    image(&["--output", "x.vmdk"]).refuses(2, &["x.vmdk", ".iso, .raw or .qcow2"]);
    image(&["--output", "x.iso", "--net", "user"]).refuses(2, &["network `user`", "an image"]);
    let two = ["--output", "x.iso", "--net", "card", "--net", "card"];
    image(&two).refuses(2, &["that of the machine's card", "choose another `mac`"]);
    image(&["--output", "no/x.iso"]).refuses(2, &["--output no/x.iso cannot be written"]);
    folder.roost(&["image", "--kernel", "none", "--output", "x.iso"]).refuses(2, &["kernel none"]);

    let mut command = folder.command(&["image", "--kernel", kernel, "--output", "x.iso"]);
    command.env("PATH", folder.path(""));
    let said = roost_tests::outcome::Said::by(command, std::time::Duration::from_secs(60));
    said.refuses(2, &["grub-mkrescue not found", "grub-common"]);
    assert_eq!(folder.names(), [""; 0]);
}
