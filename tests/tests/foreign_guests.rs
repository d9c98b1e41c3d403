//! Kernels for Xen's PV interface that are no Linux: Debian's PV GRUB.

use roost_tests::{built, folder::Folder};

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
