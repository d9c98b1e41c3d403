//! Systems as folders.

use super::*;
use crate::net::{Mac, Mtu};
use pv_abi::bundle::PciPlace;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

const GUID: &str = "01020304-0506-0708-090a-0b0c0d0e0f10";
const SYS: &str = "sys/devices/pci0000:00/0000:00:04.0/virtio1/block/vda";

/// A system on the first partition of a virtio disk.
struct Fake(TempDir);

impl Fake {
    fn new() -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        fake.disk(SYS, "vda1");
        for (name, text) in [
            ("boot/grub/grub.cfg", ""),
            ("etc/grub.d/00_header", ""),
            ("boot/vmlinuz-6.1", "kernel"),
            ("boot/initrd.img-6.1", "ramdisk"),
            ("boot/config-6.1", "CONFIG_XEN=y\nCONFIG_XEN_PV=y\n"),
            ("proc/sys/kernel/osrelease", "6.1\n"),
            ("proc/self/mountinfo", "22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw\n"),
            ("proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz root=/dev/vda1 ro quiet console=ttyS0\n"),
            ("proc/meminfo", "MemTotal:        2014388 kB\nMemFree: 1 kB\n"),
            ("proc/cpuinfo", "processor\t: 0\nprocessor\t: 1\n"),
            ("run/udev/data/b254:1", "S:disk\nE:ID_FS_UUID=aaaa-bbbb\n"),
        ] {
            fake.file(name, text);
        }
        let table = format!("E:ID_PART_TABLE_TYPE=gpt\nE:ID_PART_TABLE_UUID={GUID}\n");
        fake.file("run/udev/data/b254:0", &table);
        fake
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What /sys says of a disk with folder `sys`, and its partition.
    fn disk(&self, sys: &str, partition: &str) {
        self.file(&format!("{sys}/dev"), "254:0\n");
        self.file(&format!("{sys}/serial"), "root-disk\n");
        self.file(&format!("{sys}/{partition}/partition"), "1\n");
        let numbers = self.0.path().join("sys/dev/block");
        fs::create_dir_all(&numbers).unwrap();
        let _ = fs::remove_file(numbers.join("254:1"));
        let target = format!("../../{}/{partition}", sys.strip_prefix("sys/").unwrap());
        symlink(target, numbers.join("254:1")).unwrap();
    }

    /// Its ramdisk has this driver, and the system can tell.
    fn ramdisk(&self, driver: &str) {
        let list = format!("kernel\nusr/lib/modules/6.1/kernel/drivers/block/{driver}\n");
        self.file("boot/initrd.img-6.1", &list);
        let lister = self.0.path().join(LISTER);
        fs::create_dir_all(lister.parent().unwrap()).unwrap();
        symlink("/bin/cat", lister).unwrap();
    }

    fn look(&self) -> System {
        System::look(self.0.path()).unwrap()
    }

    fn reason(&self) -> String {
        format!("{:#}", System::look(self.0.path()).unwrap_err())
    }
}

#[test]
fn a_plain_system() {
    let fake = Fake::new();
    let system = fake.look();
    assert_eq!(system.cmdline, "root=UUID=aaaa-bbbb ro quiet console=hvc0");
    assert_eq!(
        (system.disk_words.as_str(), system.disk_name.as_str()),
        (&*format!("gpt:{GUID}"), "vda")
    );
    assert_eq!((system.boot, system.boot_uuid.as_str()), ("/boot", "aaaa-bbbb"));
    assert_eq!((system.memory, system.cpus), (2_014_388 << 10, 2));
    assert!(system.kernel.ends_with("boot/vmlinuz-6.1"));
}

#[test]
fn a_driver_is_in_the_ramdisk_or_in_the_kernel() {
    let fake = Fake::new();
    fake.ramdisk("xen-blkfront.ko.xz");
    fake.look();
    let fake = Fake::new();
    fake.ramdisk("virtio_blk.ko");
    fake.file("boot/config-6.1", "CONFIG_XEN_PV=y\nCONFIG_XEN_BLKDEV_FRONTEND=y\n");
    fake.look();
}

#[test]
fn disks_without_a_table_are_found_otherwise() {
    let fake = Fake::new();
    fake.file("run/udev/data/b254:0", "E:ID_PART_TABLE_TYPE=dos\nE:ID_PART_TABLE_UUID=12345678\n");
    assert_eq!(fake.look().disk, MachineDisk::Serial("root-disk".into()));
    fake.file(&format!("{SYS}/serial"), "");
    let place = |bus, device| MachineDisk::Pci(PciPlace { bus, device, function: 0 });
    assert_eq!(fake.look().disk, place(0, 4));
    let far = "sys/devices/pci0000:00/0000:00:01.0/0000:03:00.0/virtio2/block/vda";
    fake.disk(far, "vda1");
    fake.file(&format!("{far}/serial"), "");
    assert_eq!(fake.look().disk, place(3, 0));
}

#[test]
fn disks_of_a_scsi_controller() {
    let sys = "sys/devices/pci0000:00/0000:00:05.0/virtio2/host2/target2:0:1/2:0:1:0/block/sda";
    let fake = Fake::new();
    fake.disk(sys, "sda1");
    assert_eq!(fake.look().disk_words, format!("gpt:{GUID}"));
    fake.file("run/udev/data/b254:0", "");
    fs::remove_file(fake.0.path().join(sys).join("serial")).unwrap();
    fake.file(&format!("{sys}/device/vpd_pg80"), "\0\u{0}\0\u{8}  disk-1");
    assert_eq!(fake.look().disk, MachineDisk::Serial("disk-1".into()));
    fake.file(&format!("{sys}/device/vpd_pg80"), "\0\0\0\u{18} longer than a bundle takes");
    assert_eq!(fake.look().disk_words, "pci:00:05.0");
}

#[test]
fn a_partition_for_boot() {
    let fake = Fake::new();
    let mounts =
        "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n23 22 254:1 / /boot rw - ext4 /dev/vda1 rw\n";
    fake.file("proc/self/mountinfo", mounts);
    assert_eq!(fake.look().boot, "");
}

#[test]
fn what_is_not_supported_is_said() {
    let refused = |change: &dyn Fn(&Fake)| {
        let fake = Fake::new();
        change(&fake);
        fake.reason()
    };
    let remove =
        |name: &'static str| move |fake: &Fake| fs::remove_file(fake.0.path().join(name)).unwrap();
    assert!(refused(&remove("boot/grub/grub.cfg")).contains("no GRUB below"));
    assert!(refused(&remove("boot/initrd.img-6.1")).contains("initrd.img-6.1 is not there"));
    let no_pv = |fake: &Fake| fake.file("boot/config-6.1", "CONFIG_XEN=y\n");
    assert!(refused(&no_pv).contains("without CONFIG_XEN_PV"));
    let lvm = |fake: &Fake| fake.disk("sys/devices/virtual/block/x", "dm-0");
    assert!(refused(&lvm).contains("LVM or encrypted"));
    let raid = |fake: &Fake| fake.disk("sys/devices/virtual/block/x", "md0");
    assert!(refused(&raid).contains("RAID"));
    let scsi =
        |fake: &Fake| fake.disk("sys/devices/pci0000:00/0000:00:05.0/host0/block/sda", "sda1");
    assert!(refused(&scsi).contains("is no virtio disk"));
    let far = |fake: &Fake| {
        fake.disk("sys/devices/pci0001:00/0001:00:01.0/virtio2/block/vda", "vda1");
    };
    assert!(refused(&far).contains("PCI segment 0 alone"));
    let secure =
        |fake: &Fake| fake.file("sys/firmware/efi/efivars/SecureBoot-8be4", "\u{6}\0\0\0\u{1}");
    assert!(refused(&secure).contains("Secure Boot is on"));
    let dep = |fake: &Fake| fake.ramdisk("virtio_blk.ko");
    assert!(refused(&dep).contains("initrd.img-6.1 has no driver"));
    let nothing = |fake: &Fake| fake.file("proc/cmdline", "quiet\n");
    assert!(refused(&nothing).contains("nothing of root="));
    let overlay =
        |fake: &Fake| fake.file("proc/self/mountinfo", "22 1 0:30 / / rw - overlay o rw\n");
    assert!(refused(&overlay).contains("on no block device"));
}

impl Fake {
    /// A card with folder `sys` that leads out.
    fn card(&self, sys: &str, mtu: &str) {
        self.file(&format!("{sys}/net/ens5/address"), "42:01:0a:00:00:02\n");
        self.file(&format!("{sys}/net/ens5/mtu"), mtu);
        let device = self.0.path().join(sys).join("net/ens5/device");
        symlink("../..", device).unwrap();
        let class = self.0.path().join("sys/class/net");
        fs::create_dir_all(&class).unwrap();
        symlink(format!("../../../{sys}/net/ens5"), class.join("ens5")).unwrap();
        self.file(
            "proc/net/route",
            "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
             docker0 000011AC 00000000 0001 0 0 0 0000FFFF 0 0 0\n\
             wg0 00000000 00000000 0001 0 0 50 00000080 0 0 0\n\
             tap0 00000000 01000A0A 0003 0 0 900 00000000 0 0 0\n\
             ens5 00000000 01000A0A 0003 0 0 100 00000000 0 0 0\n",
        );
    }
}

#[test]
fn the_card_is_that_of_the_best_way_out() {
    let fake = Fake::new();
    assert_eq!(fake.look().no_card, "no card leads out of the machine now");
    fake.card("sys/devices/pci0000:00/0000:00:05.0/virtio3", "1460\n");
    let mac = Mac([0x42, 1, 10, 0, 0, 2]);
    let mtu = Some(Mtu(1460));
    assert_eq!(fake.look().card, Some(Card { name: "ens5".into(), mac, mtu }));
    let usual = Fake::new();
    usual.card("sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0/virtio3", "1500\n");
    assert_eq!(usual.look().card.unwrap().mtu, None);
}

#[test]
fn a_card_that_l1_cannot_drive_is_left_out() {
    for (sys, why) in [
        ("sys/devices/pci0000:00/0000:00:05.0", "no virtio card"),
        ("sys/devices/pci0001:00/0001:00:02.0/virtio3", "PCI segment 0 alone"),
    ] {
        let fake = Fake::new();
        fake.card(sys, "1500\n");
        let system = fake.look();
        assert!(system.card.is_none() && system.no_card.contains(why), "{}", system.no_card);
    }
}
