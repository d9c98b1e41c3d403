//! Machines without PCI: the virtio devices of L1's machine have their registers in memory, and interrupt by lines.

use roost_tests::{
    built::{self, Kernel},
    disk::{self, check, debugfs, file_system, with_disk_module},
    folder::Folder,
    net::{self, dhcp, hash, load, noise, serve},
    outcome::Said,
    qemu,
    run::Run,
    tap::Report,
};
use std::{fs, process::Command, time::Duration};

const MIB: usize = 1 << 20;

/// How often the device that L1's log calls `name` has interrupted by its line, and that line.
fn interrupts(log: &str, name: &str) -> (u32, u32) {
    let found = || {
        let named = |line: &&str| line.contains(&format!("] {name}")) && line.contains(" at 0x");
        let place = log.lines().find(named)?.split(" at ").nth(1)?.split(':').next()?;
        let of_it = |line: &&str| line.ends_with(&format!(" interrupts of the device at {place}"));
        let told = log.lines().find(of_it)?.split("interrupt line ").nth(1)?;
        let (line, rest) = told.split_once(": ")?;
        Some((rest.split(' ').next()?.parse().ok()?, line.parse().ok()?))
    };
    found().unwrap_or_else(|| panic!("no `{name}` that interrupts by a line: {log}"))
}

/// A kernel's disk and card are behind those of the machine `kind`, whose lines are from `first` on; what is typed
/// comes by the machine's virtio console if it is on that.
fn devices_of_a_stock_kernel(kind: &str, first: u32, port: &str, cpus: u32) {
    let folder = Folder::new();
    let image = file_system(&folder, "disk.img", 64 * MIB as u64);
    let kernel = Kernel::Cloud;
    let modules = [disk::DRIVER, net::DRIVER];
    let initrd = folder.busybox_with_all(kernel, &modules, &net::add_script(&folder));
    let run = folder.run(&kernel.file()).initrd(&initrd).append("console=hvc0 quiet").cpus(cpus);
    let run = run.option("--machine", kind).option("--console-port", port);
    let mut guest = run.option("--disk", &image).option("--net", "user").limit(240).piped();
    guest.expect_shell();

    with_disk_module(&mut guest);
    guest.succeed(
        "mkdir /mnt && mount -t ext4 /dev/xvda /mnt && seq 1 50000 > /mnt/numbers && sync",
    );
    // What is read afterwards comes from the disk.
    guest.succeed("echo 3 > /proc/sys/vm/drop_caches && seq 1 50000 | cmp - /mnt/numbers");

    load(&mut guest, "eth0");
    dhcp(&mut guest);
    let file = noise(2 * MIB);
    let from = serve(file.clone());
    guest.succeed(&format!("wget -q -O /mnt/file http://10.0.2.2:{from}/file && sync"));
    let sum = guest.succeed("sha256sum /mnt/file");
    assert!(sum.starts_with(&hash(&folder, &file)), "{sum}");

    guest.succeed("umount /mnt");
    guest.send("poweroff\n");
    let ended = guest.end();
    ended.assert_powered_off();
    check(&image);
    assert_eq!(debugfs(&image, "cat numbers").lines().count(), 50_000);

    // Writing, reading and flushing, and frames that came one by one or in small groups.
    let (disk, disk_line) = interrupts(&ended.log, "disk roost0");
    let (card, card_line) = interrupts(&ended.log, "network card");
    assert!(disk >= 20 && card >= 20, "{}", ended.log);
    assert!(disk_line >= first && card_line >= first && disk_line != card_line, "{}", ended.log);
    if port == "virtio" {
        // Each command that was typed came so.
        assert!(interrupts(&ended.log, "console").0 >= 10, "{}", ended.log);
    }
    assert!(!ended.log.contains("not used") && !ended.log.contains("stuck"), "{}", ended.log);
    assert_eq!(ended.log.contains(&format!("{cpus} CPUs")), cpus > 1, "{}", ended.log);
}

/// The firmware's tables tell of processors, of two I/O APICs and of the devices, whose lines are the second's.
#[test]
fn devices_of_the_firmwares_tables() {
    devices_of_a_stock_kernel("microvm", 24, "serial", 1);
}

/// Words of L1's command line tell of the devices, and a table that is older than ACPI of processors.
#[test]
fn devices_of_the_command_line() {
    devices_of_a_stock_kernel("microvm,acpi=off", 5, "virtio", 2);
}

/// What drivers of a native guest see of disks and of random bytes.
#[test]
fn devices_of_a_native_guest() {
    let folder = Folder::new();
    folder.file("disk.img", &vec![0x5a; MIB]);
    folder.file("fixed.img", &vec![0x5a; MIB]);
    let run = folder.run(&built::conformance()).memory("64M").vcpus(2).cpus(2);
    let run = run.append("only=disk,entropy patient").option("--machine", "microvm");
    let run = run.option("--disk", "disk.img").option("--disk", "fixed.img,ro");
    // The CPU has no random numbers: the machine's device gives the seed.
    let run = run.option("--device", "entropy").option("--cpu", "qemu64");
    let ended = run.limit(240).to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    for name in ["disk.write_and_read", "disk.wakes", "entropy.random"] {
        assert!(report.has_passed(name), "{name}: {report:?}");
    }
    ended.assert_powered_off();
    let line = "entropy: of the machine's device: true, of the CPU: false";
    assert!(ended.log.contains(line), "{}", ended.log);
    let disks = ["disk roost0", "disk roost1"].map(|name| interrupts(&ended.log, name).0);
    assert!(disks[0] >= 20 && disks[1] > 0, "{}", ended.log);
}

/// A line falls each time before it rises again: L1 has acknowledged. QEMU's I/O APIC, which takes any word of a line that
/// is up for a rise, would not mind if it had not.
#[test]
fn a_line_falls() {
    let folder = Folder::new();
    folder.file("disk.img", &vec![0x5a; MIB]);
    let trace = folder.path("trace");
    let words = format!("-trace enable=virtio_mmio_setting_irq -D '{}'", trace.display());
    let run = folder.run(&built::conformance()).memory("64M").option("--machine", "microvm");
    let run = run.append("only=disk.write_and_read,disk.several_at_once,disk.indirect patient");
    let run = run.option("--disk", "disk.img");
    let ended = run.option("--qemu", qemu::with_words(&folder, &words)).to_end();
    Report::parse(&ended.said.out).assert_passed(&ended.said.out);
    ended.assert_powered_off();
    let trace = fs::read_to_string(trace).expect("QEMU's trace");
    let mut levels: Vec<_> = trace.lines().map(|line| line.ends_with("IRQ 1")).collect();
    levels.dedup();
    let rises = levels.iter().filter(|up| **up).count();
    let counted = interrupts(&ended.log, "disk roost0").0 as usize;
    assert!(counted >= 8 && rises >= counted, "{counted} interrupts, {rises} rises: {trace}");
    assert_eq!(levels.last(), Some(&false), "it is still up: {trace}");
}

fn example<'a>(folder: &'a Folder, kind: &str) -> Run<'a> {
    folder.run(&built::example()).memory("64M").option("--machine", kind)
}

/// Those that are wrong cost the devices that they mean and nothing else: QEMU's own words come after them.
#[test]
fn words_that_cannot_be_meant() {
    let folder = Folder::new();
    fs::write(folder.path("disk.img"), [0; MIB]).expect("temporary file");
    // The machine has 8 places: the disk is in the last one, with line 12.
    let words = [
        ("virtio_mmio.device=512@0xfeb00c00", "write SIZE@ADDRESS:LINE"),
        ("virtio_mmio.device=none", "write SIZE@ADDRESS:LINE"),
        ("virtio_mmio.device=512@0x100000:5", "RAM is there"),
        ("virtio_mmio.device=512@0xfec00000:5", "an I/O APIC is there"),
        ("virtio_mmio.device=512@0xfee00000:5", "a local APIC is there"),
        ("virtio_mmio.device=512@0xfeb00a02:5", "no multiple of 4"),
        ("virtio_mmio.device=16@0xfeb00a00:5", "0x100 bytes of registers at least"),
        ("virtio_mmio.device=512@0xffffffffff000:5", "L1 cannot map its address"),
        ("virtio_mmio.device=512@0xfeb00c00:4", "that of the first serial port"),
    ];
    // Nobody is at the first of these places, and nothing at the second.
    let empty = "virtio_mmio.device=512@0xfeb00a00:10 virtio_mmio.device=4K@0xd0000000:11";
    let line: Vec<_> = words.iter().map(|(word, _)| *word).chain([empty]).collect();
    let line = format!("-append '{}'", line.join(" "));
    let run = example(&folder, "microvm,acpi=off").option("--disk", "disk.img");
    let ended = run.option("--qemu", qemu::with_words(&folder, &line)).to_end();
    ended.assert_powered_off();
    for (word, why) in words {
        let told = ended.log.lines().find(|line| line.contains(&format!("`{word}`: not used: ")));
        assert!(told.is_some_and(|line| line.contains(why)), "{word}: {}", ended.log);
    }
    let nothing = "virtio device at 0xd0000000: not used: no virtio device is there";
    assert!(ended.log.contains(nothing), "{}", ended.log);
    assert_eq!(ended.log.matches("not used").count(), words.len() + 1, "{}", ended.log);
    assert_eq!(interrupts(&ended.log, "disk roost0").1, 12);
}

/// A device of the time before virtio 1 is not driven, and the guest that wants it is refused.
#[test]
fn an_old_device() {
    let folder = Folder::new();
    fs::write(folder.path("disk.img"), [0; MIB]).expect("temporary file");
    let sed = "s|force-legacy=false|force-legacy=true|";
    let run = example(&folder, "microvm").option("--disk", "disk.img");
    let ended = run.option("--qemu", qemu::changed(&folder, sed)).to_end();
    assert_eq!(ended.said.status, 3, "{:?}", ended.said);
    assert!(ended.said.err.contains("the machine lacks it"), "{:?}", ended.said);
    assert!(ended.log.contains("it is older than virtio 1"), "{}", ended.log);
}

/// The time is taken from what there is. The example waits for ticks.
#[test]
fn machines_with_few_clocks() {
    let folder = Folder::new();
    for kind in ["microvm,pic=off,rtc=off", "microvm,pit=off,pic=off,rtc=on"] {
        let ended = example(&folder, kind).to_end();
        ended.assert_powered_off();
        assert!(ended.said.out.contains("3 ticks"), "{kind}: {}", ended.said.out);
    }
    let ended = example(&folder, "microvm,pit=off,pic=off,rtc=off").to_end();
    assert_eq!(ended.said.status, 4, "{:?}", ended.said);
    assert!(ended.said.err.contains("the machine has no clock"), "{:?}", ended.said);
}

/// Without QEMU's own device for it, L1 ends the machine: by ACPI, or where there is none by a reset. It has one serial
/// port, so what is for its user comes there too.
#[test]
fn the_machine_ends() {
    let folder = Folder::new();
    let kernel = built::example();
    let kernel = kernel.to_str().expect("a plain path");
    let words = ["run", "--kernel", kernel, "--memory", "64M", "--pack", "bundle"];
    let packed = folder.roost(&words);
    assert_eq!(packed.status, 0, "{packed:?}");
    folder.file("none", b"nothing");
    for kind in ["microvm", "microvm,acpi=off"] {
        for (module, expected) in
            [("bundle", "powering off"), ("none", "roost: the boot module is no bundle")]
        {
            let mut command = Command::new("qemu-system-x86_64");
            command.current_dir(folder.path("")).args(["-M", kind, "-accel", "tcg", "-cpu", "max"]);
            command.args(["-m", packed.out.trim(), "-nodefaults", "-display", "none"]);
            command.args(["-no-reboot", "-serial", "stdio", "-initrd", module, "-kernel"]);
            command.arg(built::l1());
            let said = Said::by(command, Duration::from_secs(60));
            assert_eq!(said.status, 0, "{kind}: {said:?}");
            assert!(said.out.contains(expected), "{kind}: {said:?}");
        }
    }
}
