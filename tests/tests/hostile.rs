//! A guest that attacks L1 by whatever a guest can do comes to nothing, and dies of it at most.

use roost_tests::{
    built,
    folder::Folder,
    gpt::{self, SECTOR},
    outcome::Ended,
    run::Run,
    tap::Report,
};
use std::{collections::BTreeSet, env, fs};

/// Attacks of a run.
const COUNT: &str = "1000000";
/// With it, ten million.
const THOROUGH: &str = "ROOST_TESTS_N";

/// The disk that victim and hostile guest have partitions of, and these: the victim's, the other's.
const DISK_BYTES: usize = 4 << 20;
const PARTITIONS: [gpt::Partition<'_>; 2] = [("victim", 2048, 3071), ("hostile", 3072, 4095)];

/// A run of the hostile guest. Time goes by instructions: it repeats itself exactly, but for what waits for
/// a disk.
fn hostile<'a>(folder: &'a Folder, words: &str) -> Run<'a> {
    with_devices(folder, folder.run(&built::hostile())).flag("--icount").append(words)
}

/// Gives the guest a disk, two network cards on one network, random bytes, sockets, and two vCPUs.
fn with_devices<'a>(folder: &'a Folder, run: Run<'a>) -> Run<'a> {
    folder.file("disk.img", &[0; 1 << 20]);
    let run = run.memory("64M").vcpus(2).option("--disk", "disk.img");
    let run = run.option("--net", "lan").option("--net", "lan");
    run.option("--device", "entropy").option("--device", "vsock=3")
}

/// The disk of [`beside_a_victim`] at first.
fn shared_disk() -> Vec<u8> {
    let mut disk = vec![0xa5; DISK_BYTES];
    gpt::partition(&mut disk, [0xd1; 16], &PARTITIONS);
    disk
}

/// A run beside a victim, which has a fifth of the CPU's time, and a part of the same disk.
fn beside_a_victim<'a>(folder: &'a Folder, words: &str) -> Run<'a> {
    let guest = |name: &str, words: &str, more: &str| {
        let kernel = built::hostile();
        let kernel = kernel.display();
        format!(
            "[[guest]]\nname = \"{name}\"\nkernel = \"{kernel}\"\nappend = \"{words}\"\n\
             memory = \"64M\"\n{more}\n"
        )
    };
    let devices = |partition: u32, cards: usize| {
        let card = "[[guest.net]]\nnetwork = \"lan\"\n".repeat(cards);
        format!("[[guest.disk]]\nfile = \"disk.img\"\npartition = {partition}\n{card}")
    };
    folder.file("disk.img", &shared_disk());
    let victim = guest("victim", "victim=3", &format!("weight = 25\n{}", devices(1, 1)));
    let more = "vcpus = 2\ndevice = [\"entropy\", \"vsock=3\"]";
    let hostile = guest("hostile", words, &format!("{more}\n{}", devices(2, 2)));
    let text = format!("console = \"prefix\"\n{victim}{hostile}");
    let config = folder.file("roost.toml", text.as_bytes());
    folder.run_config(&config).flag("--icount")
}

/// What a guest has said on a console that shows the lines of all.
fn said_by(ended: &Ended, name: &str) -> String {
    let lines = ended.said.out.lines();
    let lines = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix("| "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The victim has seen nothing, and never waited for longer than it must.
fn assert_victim_unharmed(ended: &Ended) {
    let said = said_by(ended, "victim");
    assert!(said.ends_with("# victim: unharmed\n"), "{said}");
    let number = |before: &str| {
        let (_, after) = said.split_once(before).expect("its report");
        let digits = after.split(' ').next().expect("a number");
        digits.parse::<u64>().expect("a number")
    };
    assert!(number("longest gap ") < 1_000_000, "{said}");
    assert!(number("us, ") > 100_000, "the others hardly ran beside it: {said}");
    assert!(number("stolen\n# victim: ") > 0, "it has not looked at its disk: {said}");
    assert!(number("looks at its disk, ") > 100, "it has seen no frames: {said}");
}

/// What of the disk is nobody's is what it was, and the hostile guest has written its own part.
fn assert_disk_unharmed(folder: &Folder) {
    let (before, after) = (shared_disk(), fs::read(folder.path("disk.img")).expect("the disk"));
    let [first, second] = PARTITIONS.map(|(_, first, _)| first as usize * SECTOR);
    let end = (PARTITIONS[1].2 as usize + 1) * SECTOR;
    assert!(before[..first] == after[..first], "what is before both parts has changed");
    assert!(before[end..] == after[end..], "what is behind both parts has changed");
    assert!(before[second..end] != after[second..end], "nothing was written");
}

/// Every reason to stop a device, or to lose a frame, has come up, and the log was spared.
fn assert_refusals(ended: &Ended, least: u64) {
    let stats = ended.guests.iter().find(|stats| stats.name() == "hostile").expect("its counters");
    for why in [
        "virtio_stop_ring",
        "virtio_stop_overrun",
        "virtio_stop_index",
        "virtio_stop_too_long",
        "virtio_stop_indirect",
        "virtio_stop_order",
        "virtio_stop_buffer",
        "virtio_stop_direction",
        "virtio_stop_unanswerable",
        "net_tx_malformed",
        "net_tx_spoofed",
        "net_rx_no_buffer",
    ] {
        assert!(stats.counter(why) >= least, "{why}: {stats:?}");
    }
    assert!(ended.log.contains("the device in slot"), "{}", ended.log);
    let len = ended.log.len();
    assert!(len < 1 << 20, "{len} bytes of log");
}

/// All that was fuzzed of devices.
fn fuzzed_items(said: &str) -> u64 {
    let counts = said.lines().filter_map(|line| line.split_once(" fuzzed items:"));
    counts.map(|(_, count)| count.trim_end().parse::<u64>().expect("a number")).sum()
}

/// No attack went wrong, the guest is itself, and L1 is sound.
fn assert_unharmed(ended: &Ended) -> Report {
    assert_passed(ended, &ended.said.out)
}

/// The same of what the guest has said among others.
fn assert_passed(ended: &Ended, said: &str) -> Report {
    let report = Report::parse(said);
    report.assert_passed(said);
    ended.assert_powered_off();
    report
}

/// Every attack but the one that needs a typist, and a victim that does not notice.
#[test]
fn all_attacks() {
    let folder = Folder::new();
    let (count, limit) = match env::var_os(THOROUGH) {
        None => (COUNT.to_owned(), 2400),
        Some(_) => (format!("{COUNT}0"), 12_000),
    };
    let words = format!("skip=spin n={count} seed=1");
    let ended = beside_a_victim(&folder, &words).limit(limit).to_end();
    let report = assert_passed(&ended, &said_by(&ended, "hostile"));
    assert_victim_unharmed(&ended);
    assert_disk_unharmed(&folder);
    assert_refusals(&ended, 100);
    assert!(fuzzed_items(&said_by(&ended, "hostile")) > 1_000_000, "{}", ended.said.out);
    assert!(report.skipped.is_empty(), "{report:?}");
    assert!(report.passed.len() > 60, "{report:?}");
    let looks = report.passed.iter().filter(|name| name.ends_with(".intact")).count();
    assert!(looks > 10 && ended.log.contains("root check: "), "{looks} looks, {}", ended.log);
}

/// Two vCPUs that run at the same time.
#[test]
fn two_at_once() {
    let folder = Folder::new();
    let run = with_devices(&folder, folder.run(&built::hostile())).cpus(2);
    let run = run.append("only=smp,devices n=40000 seed=3").limit(600);
    let report = assert_unharmed(&run.to_end());
    assert!(report.has_passed("smp.flushes"), "{report:?}");
    assert!(report.has_passed("devices.rewritten"), "{report:?}");
}

/// Another start, on a CPU without FSGSBASE, SMEP, XSAVE and large pages of 1 GiB.
#[test]
fn another_seed_on_the_oldest_cpu() {
    let folder = Folder::new();
    let run = hostile(&folder, "skip=spin n=50000 seed=2").option("--cpu", "qemu64");
    assert_unharmed(&run.limit(600).to_end());
}

/// A guest that does not yield hinders nobody: L1 takes the key that is typed meanwhile.
#[test]
fn a_guest_that_does_not_yield() {
    let folder = Folder::new();
    // In seconds that pass here, too.
    let run = folder.run(&built::hostile()).memory("64M").append("only=spin spin=3 n=1000");
    let mut guest = run.piped();
    guest.expect("# spin.masked: spinning");
    guest.send("x");
    guest.expect("# spin.masked: done");
    let report = assert_unharmed(&guest.end());
    assert!(report.has_passed("spin.masked"), "{report:?}");
}

/// Attacks that leave the guest no way on, and what L1 says about them.
const DEATHS: &[(&str, &str)] = &[
    ("guard", "triple fault: an event while another owns the PVCS"),
    ("stack-segment", "triple fault: foreign CS or SS in supervisor mode"),
    ("code-segment", "triple fault: foreign CS or SS in supervisor mode"),
    ("garbage-root", "triple fault: an event while another owns the PVCS"),
    ("random-root", "triple fault: an event while another owns the PVCS"),
    ("root-of-code", "triple fault: an event while another owns the PVCS"),
    ("entry-anywhere", "triple fault: an event while another owns the PVCS"),
    ("no-pvcs", "triple fault: an event, and no PVCS is registered"),
    ("syscall-without-pvcs", "triple fault: ERETU, and no PVCS is registered"),
    ("start-anywhere", "triple fault: an event, and no PVCS is registered"),
    ("start-on-garbage", "triple fault: an event, and no PVCS is registered"),
    ("fetch-from-a-device", "execution from a device's memory is not emulated"),
    ("locked-device", "this load from a device is not emulated"),
];

/// What only an emulator lets a guest do: QEMU 7.2's, others perhaps not.
const EMULATED_DEATHS: &[(&str, &str)] = &[
    ("virtual-8086", "virtual-8086 mode is not emulated"),
    ("debug-in-debug", "a debug exception within another is not emulated"),
];

#[test]
fn every_death_has_its_reason() {
    let folder = Folder::new();
    for (case, reason) in DEATHS {
        for seed in [1, 2] {
            hostile(&folder, &format!("die={case} seed={seed}")).to_end().assert_died(reason);
        }
    }
}

#[test]
fn what_an_emulator_lets_happen_ends_nobody_else() {
    let folder = Folder::new();
    for (case, reason) in EMULATED_DEATHS {
        let ended = hostile(&folder, &format!("die={case}")).to_end();
        if !ended.said.out.contains(&format!("the guest survived {case}")) {
            ended.assert_died(reason);
        }
    }
}

/// The guest lists its cases when it does not know one.
#[test]
fn no_death_is_forgotten() {
    let folder = Folder::new();
    let ended = hostile(&folder, "die=?").to_end();
    let cases = ended.said.out.lines().filter_map(|line| line.strip_prefix("#   "));
    let cases: BTreeSet<_> = cases.filter_map(|line| line.split_whitespace().next()).collect();
    let tried = DEATHS.iter().chain(EMULATED_DEATHS).map(|(case, _)| *case);
    let tried: BTreeSet<_> = tried.collect();
    assert_eq!(cases, tried);
}

/// A guest logs ten times as much as it may, and is told of in a line.
#[test]
fn the_log_is_not_flooded() {
    let folder = Folder::new();
    let ended = hostile(&folder, "only=storm.log n=1000000").to_end();
    assert!(assert_unharmed(&ended).has_passed("storm.log"));
    let lines = ended.log.lines().filter(|line| line.contains("gggggggg")).count();
    assert!((100..1000).contains(&lines), "{lines} of 5000 lines");
    assert!(ended.log.contains(" lines not logged: there are too many"), "{}", ended.log);
}

/// A seed repeats a run to the last number.
#[test]
fn a_seed_repeats_itself() {
    let folder = Folder::new();
    let run = |seed| hostile(&folder, &format!("only=fuzz.user n=5000 seed={seed}")).to_end();
    let [first, again, other] = [5, 5, 6].map(|seed| run(seed).said.out);
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn wrong_words_are_named() {
    let folder = Folder::new();
    for (words, reason) in [
        ("n=many", "`n=many` is no option: "),
        ("only=pvcs,calls.nothing", "there is no attack `calls.nothing`: "),
    ] {
        let ended = hostile(&folder, words).to_end();
        assert_eq!(ended.said.status, 3, "{:?}", ended.said);
        assert!(ended.said.out.contains(&format!("Bail out! {reason}")), "{:?}", ended.said);
    }
}
