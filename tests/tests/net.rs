//! Networks: guests send each other frames, none in another's name, and reach the world outside.

use roost_tests::{built, folder::Folder, outcome::Ended, run::Run, tap::Report};
use std::net::{TcpListener, TcpStream};

/// The checks of cards, of two on one network.
fn checks(folder: &Folder) -> Run<'_> {
    let run = folder.run(&built::conformance()).memory("64M").append("only=card patient");
    // The checks know of slots 2 and 3.
    ["one.img,ro", "two.img,ro"].into_iter().fold(run, |run, disk| {
        folder.file(disk.trim_end_matches(",ro"), &[0; 1 << 15]);
        run.option("--disk", disk)
    })
}

/// All pass, but for those that this VM cannot have.
fn pass(run: Run<'_>, lacks: Option<&str>) {
    let ended = run.option("--net", "lan").option("--net", "lan").limit(240).to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    let cannot = |skipped: &String| lacks.is_some_and(|lacks| skipped.ends_with(lacks));
    assert!(report.skipped.iter().all(cannot), "{report:?}");
    assert!(report.has_passed("card.both_ways"), "{report:?}");
    ended.assert_powered_off();
}

#[test]
fn two_cards_of_one_guest() {
    pass(checks(&Folder::new()), Some("# SKIP this VM has one vCPU"));
}

#[test]
fn several_processors() {
    pass(checks(&Folder::new()).cpus(2).vcpus(2), None);
}

/// A guest of a configuration with a card.
fn guest(name: &str, words: &str, net: &str) -> String {
    format!(
        "[[guest]]\nname = \"{name}\"\nkernel = \"{}\"\nmemory = \"64M\"\nappend = \"{words}\"\n\
         [[guest.net]]\n{net}\n",
        built::conformance().display()
    )
}

fn run(guests: &[String], cpus: u32) -> Ended {
    let folder = Folder::new();
    let text = format!("console = \"prefix\"\ncpus = {cpus}\n{}", guests.concat());
    let config = folder.file("roost.toml", text.as_bytes());
    folder.run_config(&config).limit(240).to_end()
}

/// What `guest` says of the frames it has sent, and received.
fn sums(out: &str, guest: &str) -> (String, String) {
    let start = format!("{guest}| # sent ");
    let line = out.lines().find_map(|line| line.trim_end().strip_prefix(&start));
    let line = line.unwrap_or_else(|| panic!("no word of `{guest}`: {out}"));
    let (sent, received) = line.split_once(" received ").expect("both");
    (sent.into(), received.into())
}

#[test]
fn two_guests_talk_and_nobody_in_anothers_name() {
    for cpus in [1, 2] {
        let net = "network = \"lan\"";
        let pair = ["one", "two"].map(|name| guest(name, "talk=200", net));
        let ended = run(&pair, cpus);
        ended.assert_powered_off();
        let (one, two) = (sums(&ended.said.out, "one"), sums(&ended.said.out, "two"));
        assert_eq!((&one.0, &one.1), (&two.1, &two.0), "{}", ended.said.out);
        assert_ne!(one.0, one.1, "each has sent its own");
        for stats in &ended.guests {
            assert_eq!(stats.counter("net_tx_spoofed"), 1, "{stats:?}");
            assert!(stats.counter("net_rx_frames") >= 200, "{stats:?}");
            assert_eq!(stats.counter("net_rx_no_buffer"), 0, "{stats:?}");
        }
    }
}

/// The bucket is full at first, and fills slowly.
#[test]
fn a_rate_holds() {
    const FRAMES: u64 = 300;
    const BYTES: u64 = 1514;
    let words = format!("flood={FRAMES}");
    let net = |rate: &str| format!("network = \"lan\"\nrate = \"{rate}\"");
    let limited = run(&[guest("slow", &words, &net("80k"))], 1);
    limited.assert_powered_off();
    let stats = &limited.guests[0];
    let (sent, lost) = (stats.counter("net_tx_frames"), stats.counter("net_tx_rate"));
    assert_eq!(sent + lost, FRAMES);
    // 128 KiB at once, and 10,000 bytes each second, of which there are no ten.
    let at_once = (128 << 10) / BYTES;
    assert!((at_once..at_once + 66).contains(&sent), "{sent}");
    let free = run(&[guest("fast", &words, &net("10G"))], 1);
    free.assert_powered_off();
    assert_eq!(free.guests[0].counter("net_tx_frames"), FRAMES);
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("it has one").port()
}

#[test]
fn a_guest_reaches_the_outside_and_is_reached() {
    for machine in ["q35", "pc"] {
        let folder = Folder::new();
        let port = free_port();
        let mut session = folder
            .run(&built::conformance())
            .memory("64M")
            .append("outside")
            .option("--machine", machine)
            .option("--net", "user")
            .option("--forward", format!("{port}:7777"))
            .piped();
        session.expect("# ready");
        // QEMU takes the connection itself, and then opens one to the guest.
        let _connection = TcpStream::connect(("127.0.0.1", port)).expect("QEMU listens");
        session.expect("# a connection to port 7777");
        let ended = session.end();
        ended.assert_powered_off();
        assert!(ended.said.out.contains("ok 1 "), "{}", ended.said.out);
        assert_eq!(ended.guests[0].counter("net_rx_long"), 0, "it does not take such packets");
    }
}

#[test]
fn cards_that_cannot_be_are_refused() {
    let folder = Folder::new();
    let kernel = built::conformance();
    let kernel = kernel.to_str().expect("a plain path");
    let refused = |options: &[&str], words: &[&str]| {
        let arguments: Vec<_> =
            ["run", "--accel", "tcg", "--kernel", kernel].iter().chain(options).copied().collect();
        folder.roost(&arguments).refuses(2, words);
    };
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("it has one").port().to_string();
    refused(&["--net", "user", "--forward", &port], &[&port, "cannot be forwarded"]);
    refused(&["--net", "lan", "--forward", "8080:80"], &["--forward needs", "--net user"]);
    refused(&["--net", "bridge=nobridge0"], &["no bridge `nobridge0`"]);
    refused(&["--net", "user,mtu=9000"], &["goes out", "`mtu`"]);
    refused(&["--net", "user,ip=10.0.2.2"], &["10.0.2.2", "none for a guest"]);
    let same = "lan,mac=02:00:00:00:00:01";
    refused(&["--net", same, "--net", same], &["02:00:00:00:00:01", "another card"]);
    refused(&["--net", "lan", "--backend", "assisted"], &["no network cards"]);
}
