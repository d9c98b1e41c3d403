//! Several guests on one machine.

use roost_tests::{built::Kernel, folder::Folder, session::Session, slot::Slot};
use std::collections::BTreeSet;

/// A guest in a configuration file, with a busybox.
fn guest(folder: &Folder, name: &str, more: &str) -> String {
    format!(
        "[[guest]]\nname = \"{name}\"\nkernel = \"{}\"\ninitrd = \"{}\"\n\
         append = \"console=hvc0 quiet\"\nmemory = \"128M\"\n{more}\n",
        Kernel::Cloud.file().display(),
        folder.path("busybox.cpio").display()
    )
}

/// A machine with `cpus` CPUs and `guests`, whose console shows whole lines.
fn start<'a>(folder: &'a Folder, machine: &str, guests: &[String]) -> Session<'a> {
    let ramdisk = folder.busybox();
    assert_eq!(ramdisk, folder.path("busybox.cpio"));
    let text = format!("console = \"focus\"\n{machine}\n{}", guests.concat());
    let config = folder.file("roost.toml", text.as_bytes());
    folder.run_config(&config).limit(240).piped()
}

/// The key that commands to the console start with.
const ESCAPE: char = '\x1d';

/// One dies, one is stopped by the user, and the third does not notice.
#[test]
fn an_end_leaves_the_others_alone() {
    let folder = Folder::new();
    let guests = ["a", "b", "c"].map(|name| guest(&folder, name, ""));
    let mut console = start(&folder, "cpus = 2", &guests);
    console.expect_shell();
    console.succeed("echo hello from $(uname -s)");
    console.send(&format!("{ESCAPE}l"));
    console.expect("2 'b' running");
    console.send("echo c > /proc/sysrq-trigger\n");
    console.expect("'a' died: its kernel panicked");
    console.expect("console of 'b' (2 of 3)");
    console.send(&format!("{ESCAPE}q"));
    console.expect("'b' was stopped by its user");
    console.expect("console of 'c' (3 of 3)");
    console.send("\n");
    console.expect_shell();
    console.succeed("dd if=/dev/urandom of=/tmp/x bs=1M count=8 && sha256sum /tmp/x");
    console.send("poweroff\n");
    let ended = console.end();
    assert_eq!(ended.said.status, 3, "a guest died: {ended:?}");
    ended.assert_l1_is_sound();
    // Two end at nearly the same time, and whose end is told first is nobody's business.
    let names: BTreeSet<_> = ended.guests.iter().map(|guest| guest.name()).collect();
    assert_eq!((names, ended.guests.len()), (BTreeSet::from(["a", "b", "c"]), 3));
}

/// A guest starts again where it is, with the memory it had, as often as it likes.
#[test]
fn a_guest_starts_again() {
    let folder = Folder::new();
    let guests = [
        guest(&folder, "again", "vcpus = 2\nrestart = \"on-failure\""),
        guest(&folder, "other", ""),
    ];
    let mut console = start(&folder, "cpus = 2", &guests);
    for end in ["reboot", "echo c > /proc/sysrq-trigger"] {
        console.expect_shell();
        console.send(&format!("{end}\n"));
        console.expect("and starts again");
    }
    console.expect_shell();
    console.send("poweroff\n");
    console.expect("'again' powered off");
    console.send("\n");
    console.expect_shell();
    console.send("poweroff\n");
    let ended = console.end();
    ended.assert_l1_is_sound();
    let left: Vec<_> = ended
        .log
        .lines()
        .filter_map(|line| line.split_once("guest 'again': 128 MiB, ")?.1.split_once(' '))
        .map(|(free, _)| free.parse::<u64>().expect("a number of MiB"))
        .collect();
    // At the first start the other guest was not built yet.
    let [_, second, third] = left[..] else { panic!("three starts: {}", ended.log) };
    assert_eq!(second, third, "memory was lost");
}

/// How much of its time the first of two guests with these weights waits for a CPU of the machine while
/// both compute: percent.
fn waits(machine: &str, weights: [u32; 2]) -> u64 {
    let folder = Folder::new();
    let guest = |name, weight| guest(&folder, name, &format!("weight = {weight}"));
    let guests = [guest("a", weights[0]), guest("b", weights[1])];
    let mut console = start(&folder, machine, &guests);
    console.expect_shell();
    console.send(&format!("{ESCAPE}2"));
    console.expect("console of 'b' (2 of 2)");
    console.send("\n");
    console.expect_shell();
    console.succeed("(while :; do :; done) & true");
    console.send(&format!("{ESCAPE}1"));
    console.expect("console of 'a' (1 of 2)");
    let now = "$(cut -d. -f1 /proc/uptime)";
    let busy = format!("end=$(({now} + 6)); while [ {now} -lt $end ]; do :; done");
    let lines = console.succeed(&format!("head -1 /proc/stat; {busy}; head -1 /proc/stat"));
    let ticks: Vec<Vec<u64>> = lines
        .lines()
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .collect();
    let [before, after] = &ticks[..] else { panic!("{lines}") };
    let all = after.iter().sum::<u64>() - before.iter().sum::<u64>();
    for _ in 0..2 {
        console.send("poweroff\n");
        console.expect("powered off");
    }
    console.end().assert_l1_is_sound();
    100 * (after[7] - before[7]) / all
}

/// Two guests never run on the threads of one core at the same time, if the user wants that.
#[test]
fn threads_of_a_core_run_one_guest() {
    // Two busy CPUs: a third would take time from them that no guest sees.
    let _other_cpu = Slot::take();
    let waits =
        |siblings| waits(&format!("cpus = 2\nthreads = 2\nsiblings = \"{siblings}\""), [100; 2]);
    let any = waits("any");
    assert!(any < 20, "{any} % of the time stolen, with a CPU for each");
    for siblings in ["one-guest", "kick"] {
        let stolen = waits(siblings);
        assert!((30..=70).contains(&stolen), "{siblings}: {stolen} % of the time stolen");
    }
}

/// Two guests that compute share a CPU by their weights.
#[test]
fn weights_are_shares() {
    let [light, heavy] = [[100, 300], [300, 100]].map(|weights| waits("cpus = 1", weights));
    assert!((60..=90).contains(&light), "{light} % of the light one's time stolen");
    assert!((10..=40).contains(&heavy), "{heavy} % of the heavy one's time stolen");
}
