//! Kernels for Xen's PV interface that are no Linux: Debian's PV GRUB.

use roost_tests::{built, disk, folder::Folder};
use std::fs::File;

/// Moves the menu's choice down; GRUB takes control characters as Emacs does.
const DOWN: &str = "\x0e";

#[test]
fn grub_as_packaged_takes_commands() {
    let folder = Folder::new();
    let [packaged, _] = built::grub();
    let mut guest = folder.run(&packaged).memory("64M").piped();
    guest.expect("GNU GRUB");
    guest.expect("grub>");
    // Its echo of the keys has cursor movements between them; only the answer is in one piece.
    guest.send("echo fi''rst se''cond\r");
    guest.expect("first second");
    guest.send("halt\r");
    guest.end().assert_powered_off();
}

/// By its driver for Xen's disks.
#[test]
fn grub_reads_a_disk() {
    let folder = Folder::new();
    let [packaged, _] = built::grub();
    folder.file("file.txt", b"what a file says\n");
    let image = folder.path("disk.img");
    File::create(&image).and_then(|file| file.set_len(1 << 20)).expect("temporary file");
    disk::host("mke2fs", &["-q", "-t", "ext2", disk::text(&image)]);
    let write = format!("write {} file.txt", disk::text(&folder.path("file.txt")));
    assert!(disk::debugfs(&image, &write).contains("Allocated inode"));
    let run = folder.run(&packaged).memory("64M").option("--disk", "disk.img");
    let mut guest = run.piped();
    guest.expect("grub>");
    guest.send("ls\r");
    guest.expect("(xenid/51712)");
    guest.send("cat (xenid/51712)/file.txt\r");
    guest.expect("what a file says");
    guest.send("halt\r");
    guest.end().assert_powered_off();
}

#[test]
fn grub_shows_a_menu_and_does_what_is_chosen() {
    let folder = Folder::new();
    let [_, menu] = built::grub();
    let mut guest = folder.run(&menu).memory("512M").piped();
    guest.expect("Say hello");
    guest.expect("Power off");
    guest.send(DOWN);
    guest.expect("*Power off");
    guest.send("\r");
    guest.end().assert_powered_off();
}
