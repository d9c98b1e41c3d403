//! Guests' consoles on the machine's virtio console.

use roost_tests::{
    built::{self, Kernel},
    folder::Folder,
    qemu,
    session::Session,
};

fn power_off(mut guest: Session<'_>) -> String {
    guest.send("poweroff\n");
    let ended = guest.end();
    ended.assert_powered_off();
    ended.log
}

/// A shell, much output, and as much input at once as a guest's console takes.
#[test]
fn a_shell_on_a_virtio_console() {
    let folder = Folder::new();
    let initrd = folder.busybox();
    for cpus in [1, 2] {
        let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd).append("console=hvc0 quiet");
        let mut guest = run.cpus(cpus).option("--console-port", "virtio").piped();
        guest.expect_shell();
        let numbers = guest.succeed("seq 1 5000");
        let expected: Vec<_> = (1..=5000).map(|number: u32| number.to_string()).collect();
        let found: Vec<_> = numbers.lines().map(str::trim).collect();
        assert_eq!(found, expected, "lines of output");
        let words = "typed ".repeat(30);
        assert_eq!(guest.succeed(&format!("echo {words}")).trim(), words.trim());
        let log = power_off(guest);
        assert!(log.contains("console at "), "{log}");
    }
}

/// Several guests share it as they share the serial port.
#[test]
fn two_guests_share_it() {
    let folder = Folder::new();
    let kernel = built::example();
    let guest = |name: &str| {
        let kernel = kernel.display();
        format!("[[guest]]\nname = \"{name}\"\nkernel = \"{kernel}\"\nmemory = \"64M\"\n")
    };
    let text = format!(
        "console = \"prefix\"\nconsole-port = \"virtio\"\n{}{}",
        guest("one"),
        guest("two")
    );
    let config = folder.file("roost.toml", text.as_bytes());
    let ended = folder.run_config(&config).to_end();
    ended.assert_powered_off();
    for name in ["one", "two"] {
        let line = format!("{name}| hello from user mode");
        assert!(ended.said.out.contains(&line), "{}", ended.said.out);
    }
    assert!(ended.log.contains("console at "), "{}", ended.log);
}

/// A machine without one: the serial port has the consoles.
#[test]
fn a_machine_that_lacks_it() {
    let folder = Folder::new();
    let sed = "s|^null$|chardev:console|;s|^virtio-serial-pci.*|virtio-rng-pci|;\
               s|^virtconsole.*|virtio-rng-pci|";
    let run = folder.run(&built::example()).memory("64M").option("--console-port", "virtio");
    let ended = run.option("--qemu", qemu::changed(&folder, sed)).to_end();
    ended.assert_powered_off();
    assert!(ended.said.out.contains("hello from user mode"), "{}", ended.said.out);
    assert!(ended.log.contains("the machine lacks a virtio console"), "{}", ended.log);
}
