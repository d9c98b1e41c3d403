//! The machine loses its power in the middle of writes: what a guest was told is durable is on the disk.
//!
//! QEMU is killed at any time. That alone loses nothing, for what it wrote is in this machine's memory; so
//! QEMU keeps a log of all that reaches the disk, and the disk that a power cut leaves is made from that:
//! everything up to the last flush, and of what came later all, nothing, or some.
//!
//! `ROOST_KILLS=200` kills that often, not five times; `make powercut` does.

use roost_tests::{
    built::{self, Kernel},
    disk::{file_system, host, ramdisk, text, with_disk_module},
    folder::Folder,
    qemu,
    run::Run,
    session::Session,
    write_log::WriteLog,
};
use std::{
    fs, thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

fn kills(usual: u64) -> u64 {
    let asked = std::env::var("ROOST_KILLS").ok();
    asked.map_or(usual, |count| count.parse().expect("ROOST_KILLS is a number"))
}

/// A number that differs from time to time; it is told, since it says what was tried.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_nanos() as u64 | 1
}

/// The next of a row of numbers without an order (xorshift).
const fn next(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ x << 17
}

/// Has QEMU log what it writes to the disk `disk.img`.
fn logged<'a>(folder: &'a Folder, run: Run<'a>) -> Run<'a> {
    let log = folder.file("writes", b"");
    let driver = format!(
        "driver=blklogwrites,file.driver=file,file.filename=\\1,log.driver=file,log.filename={},\
         log-super-update-interval=1,",
        log.display()
    );
    let sed = format!("s|file=\\([^,]*disk.img\\),format=raw,\\(.*\\),discard=unmap|{driver}\\2|");
    let qemu = qemu::changed(folder, &sed);
    run.option("--qemu", qemu).option("--disk", "disk.img")
}

/// Kills QEMU after so many milliseconds; what the guest has said until then is durable.
fn kill(guest: Session<'_>, after: u64) -> Vec<u64> {
    thread::sleep(Duration::from_millis(after));
    let qemu = guest.qemu().to_string();
    let _ = host("kill", &["-9", &qemu]);
    let out = guest.after_kill();
    let numbers = out.lines().filter_map(|line| line.trim().strip_prefix("durable "));
    // The last line may be half of one.
    let whole = if out.ends_with('\n') {
        usize::MAX
    } else {
        out.matches("durable ").count().saturating_sub(1)
    };
    numbers.take(whole).filter_map(|number| number.parse().ok()).collect()
}

/// The disks that a power cut may have left: nothing of what was not flushed, all, and some of it.
fn left(folder: &Folder, before: &[u8], random: u64) -> [Vec<u8>; 3] {
    let log = WriteLog::parse(&fs::read(folder.path("writes")).expect("the log"));
    let keeps: [&dyn Fn(usize) -> bool; 3] =
        [&|_| false, &|_| true, &|number| next(random ^ number as u64) & 64 != 0];
    keeps.map(|keep| {
        let mut disk = before.to_vec();
        log.replay(&mut disk, keep);
        disk
    })
}

/// Kills a guest that writes numbered blocks; the durable ones that are missing, of how many.
fn native(images: Option<&str>, random: u64) -> (Vec<u64>, usize) {
    let folder = Folder::new();
    let before = vec![0; 16 * MIB];
    folder.file("disk.img", &before);
    let flaw = images.map_or(String::new(), |flaw| format!("roost.abi-flaw={flaw}"));
    let run = folder.run(&built::conformance()).memory("64M").append("durable").append(&flaw);
    let run = if images.is_some() { run.images(built::flaws()) } else { run };
    let mut guest = logged(&folder, run).piped();
    guest.expect("durable 1");
    guest.expect("\n");
    let durable = kill(guest, random % 500);
    let holds = |disk: &[u8], number: u64| {
        let block = &disk[number as usize * BLOCK..][..BLOCK];
        block.chunks(8).all(|word| word == number.to_le_bytes())
    };
    let disks = left(&folder, &before, random);
    let missing =
        durable.iter().copied().filter(|&number| !disks.iter().all(|disk| holds(disk, number)));
    (missing.collect(), durable.len())
}

#[test]
fn what_is_durable_is_there() {
    let mut random = seed();
    let mut blocks = 0;
    for round in 0..kills(5) {
        random = next(random);
        let (missing, durable) = native(None, random);
        assert!(
            missing.is_empty(),
            "round {round}, {random:#x}: {missing:?} of {durable} are lost"
        );
        blocks += durable;
    }
    println!("{} kills, {blocks} durable blocks, none lost", kills(5));
    assert!(blocks > 0, "nothing was written");
}

/// An L1 that answers flushes without doing anything is found out.
#[test]
fn a_flush_that_goes_nowhere_is_seen() {
    let (missing, durable) = native(Some("flush-ignored"), seed());
    assert!(durable > 0 && missing.len() == durable, "{missing:?} of {durable}");
}

/// Linux writes to a file and has it durable, line by line. Its file system replays its journal, is sound
/// then, and has all lines.
#[test]
fn file_systems_are_sound() {
    let mut random = seed();
    for round in 0..kills(5).div_ceil(5) {
        random = next(random);
        let folder = Folder::new();
        let before =
            fs::read(file_system(&folder, "disk.img", 32 * MIB as u64)).expect("the image");
        let kernel = Kernel::Cloud;
        let initrd = ramdisk(&folder, kernel);
        let run = folder.run(&kernel.file()).initrd(&initrd).append("console=hvc0 quiet");
        let mut guest = logged(&folder, run).piped();
        guest.expect_shell();
        with_disk_module(&mut guest);
        guest.succeed("mkdir /mnt && mount -t ext4 /dev/xvda /mnt");
        guest.send(
            "n=0; while true; do n=$((n+1)); echo $n | dd of=/mnt/$n conv=fsync 2>/dev/null && \
             echo durable $n; done\n",
        );
        guest.expect("durable 2");
        let durable = kill(guest, random % 2000);
        for (number, disk) in left(&folder, &before, random).iter().enumerate() {
            judge(&folder, disk, &durable, &format!("round {round}, {random:#x}, disk {number}"));
        }
    }
}

fn judge(folder: &Folder, disk: &[u8], durable: &[u64], which: &str) {
    let image = folder.file("left.img", disk);
    // The first one replays the journal, and says so by 1; the second finds nothing to do.
    let first = status("e2fsck", &["-p", text(&image)]);
    assert!([0, 1].contains(&first), "{which}: e2fsck -p: {first}");
    let second = status("e2fsck", &["-f", "-n", text(&image)]);
    assert_eq!(second, 0, "{which}: e2fsck -f -n");
    for number in durable {
        let content = roost_tests::disk::debugfs(&image, &format!("cat {number}"));
        assert_eq!(content.trim(), number.to_string(), "{which}");
    }
}

fn status(program: &str, arguments: &[&str]) -> i32 {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = std::process::Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output()
        .expect("package e2fsprogs");
    output.status.code().unwrap_or(-1)
}
