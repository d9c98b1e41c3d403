//! Several CPUs, several vCPUs.

use roost_tests::{built::Kernel, folder::Folder, session::Session, tap::Report};

/// A shell in a guest with `vcpus` vCPUs on `cpus` CPUs.
fn shell(folder: &Folder, kernel: Kernel, cpus: u32, vcpus: u32) -> Session<'_> {
    let initrd = folder.busybox();
    let run = folder.run(&kernel.file()).initrd(&initrd).append("console=hvc0 quiet");
    let mut guest = run.cpus(cpus).vcpus(vcpus).memory("512M").limit(240).piped();
    guest.expect_shell();
    guest
}

/// The kernel says nothing that it says when something is wrong.
fn assert_quiet(guest: &mut Session<'_>) {
    let bad = "WARNING:|BUG:|Call Trace|rcu.*stall|soft lockup|clocksource.*unstable";
    let (status, lines) = guest.shell(&format!("dmesg | grep -E '{bad}'"));
    assert_eq!(status, 1, "{lines}");
}

fn power_off(mut guest: Session<'_>) -> roost_tests::outcome::Ended {
    guest.send("poweroff\n");
    let ended = guest.end();
    ended.assert_powered_off();
    ended.assert_l1_is_sound();
    ended
}

/// Everything that is checked with one vCPU holds with two, each on a CPU of its own.
#[test]
fn guest_checks_with_two_vcpus() {
    let folder = Folder::new();
    let initrd = folder.guest_checks();
    let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd).cpus(2).vcpus(2);
    let words = "console=hvc0 quiet check.n=0.05 check.limit=200";
    let ended = run.memory("512M").limit(240).append(words).to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    ended.assert_powered_off();
    let stats = ended.stats.expect("statistics");
    assert!(stats.exits("kick") > 0, "no CPU had to interrupt the other: {stats:?}");
}

/// More vCPUs than CPUs: they share, and know how much others had.
#[test]
fn four_vcpus_on_one_cpu() {
    let folder = Folder::new();
    let mut guest = shell(&folder, Kernel::Cloud612, 1, 4);
    assert_eq!(guest.succeed("nproc").trim(), "4");
    let work = "for i in 1 2 3 4; do (n=0; while [ $n -lt 40 ]; do /bin/true; n=$((n+1)); done; \
                echo done) & done; wait";
    assert_eq!(guest.succeed(work).matches("done").count(), 4);
    let busy = "for i in 1 2 3 4; do (while :; do :; done) & done; sleep 4; \
                kill %1 %2 %3 %4; wait";
    guest.succeed(busy);
    let line = guest.succeed("head -1 /proc/stat");
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let (all, stolen) = (ticks.iter().sum::<u64>(), ticks[7]);
    assert!(stolen * 4 > all, "of {all} ticks {stolen} were stolen: {line}");
    assert_quiet(&mut guest);
    let ended = power_off(guest);
    assert!(ended.stats.expect("statistics").counter("stolen_ticks") > 0);
}

/// CPUs of the kernel go off-line and come back, while others fork.
#[test]
fn vcpus_go_and_come_back() {
    let folder = Folder::new();
    let mut guest = shell(&folder, Kernel::Cloud, 2, 3);
    guest.succeed("(while :; do /bin/true; done) & sleep 1");
    for round in 0..3 {
        for cpu in [1, 2] {
            guest.succeed(&format!("echo 0 > /sys/devices/system/cpu/cpu{cpu}/online"));
        }
        assert_eq!(guest.succeed("nproc").trim(), "1", "round {round}");
        for cpu in [2, 1] {
            guest.succeed(&format!("echo 1 > /sys/devices/system/cpu/cpu{cpu}/online"));
        }
        assert_eq!(guest.succeed("nproc").trim(), "3", "round {round}");
        for cpu in 0..3 {
            let here = format!("taskset -c {cpu} cat /proc/self/stat | cut -d' ' -f39");
            assert_eq!(guest.succeed(&here).trim(), cpu.to_string());
        }
    }
    guest.succeed("kill %1; wait");
    assert_quiet(&mut guest);
    power_off(guest);
}

/// As many as there may be.
#[test]
fn thirty_two_vcpus() {
    let folder = Folder::new();
    let mut guest = shell(&folder, Kernel::Cloud612, 2, 32);
    assert_eq!(guest.succeed("nproc").trim(), "32");
    let here = "for c in 0 13 31; do taskset -c $c cat /proc/self/stat | cut -d' ' -f39; done";
    assert_eq!(guest.succeed(here).split_whitespace().collect::<Vec<_>>(), ["0", "13", "31"]);
    power_off(guest);
}

/// A shell in a guest with one vCPU, where time is the number of instructions.
fn counted(folder: &Folder) -> Session<'_> {
    let initrd = folder.busybox();
    let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd).flag("--icount");
    let mut guest = run.append("console=hvc0 quiet").piped();
    guest.expect_shell();
    guest
}

/// A guest that waits costs an exit a wake-up and nothing else: ten a second at most.
#[test]
fn an_idle_guest_is_left_alone() {
    // Many: two boots differ by some 40 exits.
    const SECONDS: u64 = 60;
    let exits = |seconds: u64| {
        let folder = Folder::new();
        let mut guest = counted(&folder);
        guest.succeed(&format!("sleep {seconds}"));
        power_off(guest).stats.expect("statistics").all_exits()
    };
    let (short, long) = (exits(1), exits(1 + SECONDS));
    let idle = long.saturating_sub(short);
    assert!(idle <= 10 * SECONDS, "{idle} exits in {SECONDS} seconds");
    assert!(idle >= SECONDS / 2, "{idle} exits in {SECONDS} seconds: nobody woke up");
}

/// A tick of a guest that is busy costs one exit: L1 looks at the timer's word when it fires.
#[test]
fn a_tick_is_one_exit() {
    let ticks_and_exits = |turns: u64| {
        let folder = Folder::new();
        let mut guest = counted(&folder);
        guest.succeed(&format!("i=0; while [ $i -lt {turns} ]; do i=$((i+1)); done"));
        let told = guest.succeed("grep timer0 /proc/interrupts");
        let ticks = told.split_whitespace().nth(1).and_then(|ticks| ticks.parse().ok());
        let ticks: u64 = ticks.unwrap_or_else(|| panic!("{told:?}"));
        (ticks, power_off(guest).stats.expect("statistics").exits("timer"))
    };
    let ((few, short), (many, long)) = (ticks_and_exits(1), ticks_and_exits(200_000));
    let (ticks, exits) = (many - few, long.saturating_sub(short));
    assert!(ticks >= 200, "{ticks} ticks: it was not busy for long");
    assert!(exits * 10 <= ticks * 12, "{exits} exits of the timer for {ticks} ticks");
    assert!(exits * 10 >= ticks * 8, "{exits} exits of the timer for {ticks} ticks");
}
