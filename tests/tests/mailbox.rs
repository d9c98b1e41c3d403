//! Where the firmware has a mailbox for processors, L1 starts them by that, and by nothing else.
//!
//! The firmware leaves L1 no RAM below 1 MiB, without which no processor can be started by interrupts,
//! unless its word `low` is there.

use roost_tests::{
    built::{self, Kernel},
    folder::Folder,
    outcome::Ended,
    qemu,
    session::Session,
};
use std::time::Duration;

/// APIC ids of the processors that took a command, in order, as the firmware tells.
fn woken(log: &str) -> Vec<&str> {
    let lines = log.lines().filter_map(|line| line.strip_prefix("firmware: processor "));
    lines.filter_map(|line| Some(line.split_once(" goes to 0x")?.0)).collect()
}

/// Ticks of user code, and ticks in which another had the processor: of all vCPUs, and of each.
fn user_ticks(guest: &mut Session<'_>) -> Vec<(u64, u64)> {
    let stat = guest.succeed("head -5 /proc/stat");
    let ticks = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words[1].parse().expect("a number"), words[8].parse().expect("a number"))
    };
    stat.lines().map(ticks).collect()
}

/// The example kernel with two vCPUs on a machine with four processors.
fn example(words: &str) -> Ended {
    let folder = Folder::new();
    let qemu = qemu::with_mailbox(&folder, words);
    let run = folder.run(&built::example()).memory("64M").cpus(4).vcpus(2);
    let ended = run.option("--qemu", qemu).to_end();
    assert!(ended.said.out.contains("hello from vCPU 1"), "{}", ended.said.out);
    ended.assert_powered_off();
    ended
}

#[test]
fn four_processors_run_four_vcpus() {
    let folder = Folder::new();
    let (qemu, initrd) = (qemu::with_mailbox(&folder, ""), folder.busybox());
    let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd).append("console=hvc0 quiet");
    let run = run.cpus(4).vcpus(4).memory("256M").limit(600).option("--qemu", qemu);
    let mut guest = run.piped();
    // Four processors of an emulator take turns on a busy host.
    guest.set_patience(Duration::from_secs(300));
    guest.expect_shell();
    assert_eq!(guest.succeed("nproc").trim(), "4");
    let before = user_ticks(&mut guest);
    let busy = "for c in 0 1 2 3; do (exec taskset -c $c sh -c 'while :; do :; done') & done; \
                sleep 4; kill %1 %2 %3 %4; wait";
    guest.succeed(busy);
    let after = user_ticks(&mut guest);
    // A busy host takes some, unseen.
    let ran = |vcpu: usize| after[vcpu].0 - before[vcpu].0 > 40;
    assert!((1..=4).all(ran), "one has not run: {before:?} {after:?}");
    // Four on three processors would wait for a third of the time that they run.
    let (user, stolen) = (after[0].0 - before[0].0, after[0].1 - before[0].1);
    assert!(stolen * 5 < user, "they have waited for each other: {before:?} {after:?}");
    guest.send("poweroff\n");
    let ended = guest.end();
    ended.assert_powered_off();
    let log = &ended.log;
    assert!(log.contains("processors are woken by the firmware's mailbox at 0x"), "{log}");
    assert_eq!(woken(log), ["1", "2", "3"], "{log}");
    assert!(log.contains("4 CPUs"), "{log}");
}

#[test]
fn one_that_takes_no_command_is_left_out() {
    let log = example("deaf=2").log;
    assert!(log.contains("APIC id 2 takes no command from the mailbox: L1 goes on"), "{log}");
    assert_eq!(woken(&log), ["1", "3"], "{log}");
    assert!(log.contains("3 CPUs"), "{log}");
}

/// Processor 1 goes when L1 does not expect it any more, but another: one of the two comes up, on one stack.
#[test]
fn one_that_comes_late_disturbs_nobody() {
    const LATE: &str =
        "the processor with APIC id 1 starts late: L1 goes on with it, and without 2";
    for (words, comes_up) in [("late=1 deaf=2", true), ("late=1", false)] {
        let log = example(words).log;
        assert!(log.contains("APIC id 1 does not start: L1 goes on"), "{words}: {log}");
        assert!(!comes_up || log.contains(LATE), "{words}: {log}");
        assert!(log.contains("3 CPUs"), "{words}: {log}");
    }
    let log = example("late=3").log;
    assert!(log.contains("APIC id 3 does not start: L1 goes on"), "{log}");
    assert!(log.contains("3 CPUs"), "{log}");
}

/// Then there are interrupts, as if the firmware had said nothing.
#[test]
fn a_mailbox_that_cannot_be_is_not_used() {
    for (words, wrong) in [
        ("length=8", "its structure has 8 bytes, not 16"),
        ("address=33554440", "0x2000008 is not the start of a page"),
        ("address=4503599627366400", "L1 cannot map 0xffffffffff000"),
    ] {
        let log = example(&format!("low=1 {words}")).log;
        let line = format!("the firmware's mailbox for processors is not used: {wrong}");
        assert!(log.contains(&line), "{log}");
        assert_eq!(woken(&log), [""; 0], "{log}");
        assert!(log.contains("4 CPUs"), "{log}");
    }
}

/// Which shows that the other tests' processors were not started by interrupts.
#[test]
fn without_low_memory_interrupts_start_nobody() {
    let log = example("length=8").log;
    assert!(!log.contains(" CPUs") && woken(&log).is_empty(), "{log}");
}
