//! Disks: what a native guest reads and writes is what is in the files on the host, and what cannot be
//! given to a guest is refused before anything starts.

use roost_tests::{built, folder::Folder, qemu, run::Run, tap::Report};
use std::{fs, path::Path, process::Command};

const BYTES: usize = 1 << 20;
const SECTOR: usize = 512;
/// What the suite's `disk.write_and_read` writes at sector 8, 16 sectors of it.
const SEED: u64 = 0x0123_4567_89ab_0000;

/// Bytes that are not those of another place.
fn pattern() -> Vec<u8> {
    (0..BYTES as u32 / 4).flat_map(|word| (word ^ 0x5a5a_0000).to_le_bytes()).collect()
}

/// Checks of disks in slot 0, which may be written, and slot 1, which may not.
fn checks<'a>(folder: &'a Folder, disks: [&str; 2]) -> Run<'a> {
    let run = folder.run(&built::conformance()).memory("64M").vcpus(2).append("only=disk patient");
    disks.into_iter().fold(run, |run, disk| run.option("--disk", disk))
}

/// The checks pass, none is left out, and L1 has found nothing wrong with itself.
fn pass(run: Run<'_>) {
    let ended = run.limit(240).to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    // What needs a disk that fails has tests of its own (`disk_errors.rs`).
    let fails = |name: &String| name.starts_with("disk.machine_");
    assert!(report.skipped.len() == 2 && report.skipped.iter().all(fails), "{report:?}");
    assert!(report.has_passed("disk.write_and_read"), "{report:?}");
    ended.assert_powered_off();
}

/// `image` is as the checks leave a disk that held [`pattern`].
fn assert_written(image: &[u8]) {
    let before = pattern();
    let (start, end) = (8 * SECTOR, 24 * SECTOR);
    for (at, word) in image[start..end].chunks(8).enumerate() {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        assert_eq!(word, SEED ^ (8 * at as u64), "word {at}");
    }
    assert_eq!(image[..start], before[..start], "before what was written");
    // Sectors 40, 50 to 54 and 56 to 63 are those of other checks.
    assert_eq!(image[end..40 * SECTOR], before[end..40 * SECTOR], "after it");
    assert_eq!(image[55 * SECTOR..56 * SECTOR], before[55 * SECTOR..56 * SECTOR], "between");
    assert_eq!(image[64 * SECTOR..], before[64 * SECTOR..], "the rest");
}

/// The same of disks that are units of a SCSI controller.
#[test]
fn of_a_scsi_controller() {
    let folder = Folder::new();
    let disk = folder.file("disk.img", &pattern());
    let read_only = folder.file("fixed.img", &pattern());
    let run = checks(&folder, ["disk.img", "fixed.img,ro"]);
    pass(run.option("--qemu", qemu::with_scsi(&folder, "")));
    assert_written(&fs::read(disk).expect("the disk"));
    assert_eq!(fs::read(read_only).expect("the disk"), pattern());
}

/// Units that guests cannot have as disks are left out, and the log says why.
#[test]
fn units_that_are_no_disks() {
    let folder = Folder::new();
    let odd = folder.file("odd.img", &[0; BYTES]);
    let words = format!(
        "-device virtio-scsi-pci,id=more -device scsi-cd,bus=more.0 \
         -drive if=none,id=odd,format=raw,file={} \
         -device scsi-hd,bus=more.0,drive=odd,logical_block_size=4096,physical_block_size=4096",
        odd.display()
    );
    // L1 looks for disks if somebody is to have one.
    folder.file("disk.img", &[0; BYTES]);
    let run = folder.run(&built::conformance()).memory("64M").append("only=start");
    let run = run.option("--disk", "disk.img");
    let ended = run.option("--qemu", qemu::with_words(&folder, &words)).to_end();
    ended.assert_powered_off();
    for words in [
        "unit 0:0: not used: it is of another kind (0x5)",
        "unit 1:0: not used: its blocks are of 4096 bytes",
    ] {
        assert!(ended.log.contains(words), "{words}: {}", ended.log);
    }
}

#[test]
fn what_a_guest_writes_is_in_the_file() {
    for machine in ["q35", "pc"] {
        let folder = Folder::new();
        let disk = folder.file("disk.img", &pattern());
        let read_only = folder.file("read,only.img", &pattern());
        pass(
            checks(&folder, ["disk.img", "read,only.img,name=fixed,ro"])
                .option("--machine", machine),
        );
        assert_written(&fs::read(disk).expect("the disk"));
        assert_eq!(fs::read(read_only).expect("the other disk"), pattern(), "it is read-only");
    }
}

#[test]
fn several_processors() {
    let folder = Folder::new();
    let disk = folder.file("disk.img", &pattern());
    folder.file("fixed.img", &pattern());
    pass(checks(&folder, ["disk.img", "fixed.img,ro"]).cpus(2));
    assert_written(&fs::read(disk).expect("the disk"));
}

/// `qemu-img` with these words.
fn qemu_img(folder: &Folder, words: &[&str]) {
    let done = Command::new("qemu-img").args(words).current_dir(folder.path("")).output();
    let done = done.expect("qemu-img starts");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn qcow2_is_recognized() {
    let folder = Folder::new();
    folder.file("raw.img", &pattern());
    qemu_img(&folder, &["convert", "-O", "qcow2", "raw.img", "disk.qcow2"]);
    pass(checks(&folder, ["disk.qcow2", "raw.img,ro"]));
    qemu_img(&folder, &["convert", "-O", "raw", "disk.qcow2", "after.img"]);
    assert_written(&fs::read(folder.path("after.img")).expect("the disk"));
}

/// Each guest has the disks that are its own.
#[test]
fn two_guests_have_two_disks() {
    let folder = Folder::new();
    let kernel = built::conformance();
    let guest = |name: &str| {
        folder.file(&format!("{name}.img"), &pattern());
        format!(
            "[[guest]]\nname = \"{name}\"\nkernel = \"{}\"\nmemory = \"64M\"\nvcpus = 2\n\
             append = \"patient only=disk\"\n[[guest.disk]]\nfile = \"{name}.img\"\n\
             [[guest.disk]]\nfile = \"both.img\"\nread-only = true\n",
            kernel.display()
        )
    };
    let text = format!("console = \"prefix\"\n{}{}", guest("one"), guest("two"));
    folder.file("both.img", &pattern());
    let config = folder.file("roost.toml", text.as_bytes());
    let ended = folder.run_config(&config).limit(240).to_end();
    ended.assert_powered_off();
    for name in ["one", "two"] {
        assert_written(&fs::read(folder.path(&format!("{name}.img"))).expect("a disk"));
    }
}

/// A disk that cannot be had, and what the tool says.
#[test]
fn what_cannot_be_is_refused() {
    let folder = Folder::new();
    let kernel = built::conformance();
    let kernel = kernel.to_str().expect("a plain path");
    folder.file("disk.img", &pattern());
    folder.file("empty.img", b"");
    folder.file("damaged.qcow2", b"QFI\xfb and then nothing that makes sense");
    let fixed = folder.file("fixed.img", &pattern());
    let mut permissions = fs::metadata(&fixed).expect("a file").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&fixed, permissions).expect("it is ours");
    let refused = |disks: &[&str], words: &[&str]| {
        let disks = disks.iter().flat_map(|disk| ["--disk", disk]);
        let arguments: Vec<_> =
            ["run", "--accel", "tcg", "--kernel", kernel].into_iter().chain(disks).collect();
        folder.roost(&arguments).refuses(2, words);
    };
    refused(&["absent.img"], &["disk absent.img", "No such file"]);
    refused(&["."], &["disk .", "is a directory"]);
    refused(&["empty.img"], &["disk empty.img", "is empty"]);
    refused(&["fixed.img"], &["disk fixed.img", "may not be written", "`ro`"]);
    refused(&["disk.img", "disk.img,ro"], &["disk disk.img", "is given twice"]);
    refused(&["disk.img", "fixed.img,ro,name=disk0"], &["two disks have the name 'disk0'"]);
    refused(&["damaged.qcow2,ro"], &["QEMU cannot use disk damaged.qcow2"]);
    let _lock = Lock::of(&folder.path("disk.img"));
    refused(&["disk.img"], &["disk disk.img", "is in use by another QEMU"]);
}

/// A QEMU that has a disk, until this is dropped.
struct Lock(std::process::Child);

impl Lock {
    fn of(disk: &Path) -> Self {
        let drive = format!("if=none,id=disk,format=raw,file={}", disk.display());
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "q35", "-m", "16", "-nodefaults", "-display", "none", "-S"]);
        command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
        command.args(["-monitor", "none", "-pidfile"]).arg(disk.with_extension("pid"));
        let child = command.spawn().expect("QEMU starts");
        // It writes its number when it has opened everything.
        while !disk.with_extension("pid").exists() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Self(child)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
