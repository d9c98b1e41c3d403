//! Virtio devices of native guests that are no disks and no network cards. What their drivers see of them is
//! for the conformance suite, which has them all (`conformance.rs`); here is what it takes somebody else for.

use roost_tests::{built, folder::Folder, tap::Report};

/// What is typed comes by the console, not by the UART, and what the guest sends back is shown.
#[test]
fn a_console_takes_what_is_typed() {
    let folder = Folder::new();
    let run = folder.run(&built::conformance()).memory("64M").append("echo");
    let mut session = run.option("--device", "console").limit(120).piped();
    session.expect("# say something");
    session.send("hello");
    session.expect("HELLO");
    // More than a buffer of the guest's holds.
    session.send(&"abcdefgh".repeat(40));
    session.expect(&"ABCDEFGH".repeat(40));
    session.send("that is all.");
    session.expect("THAT IS ALL.");
    session.expect("ok 1 - CON-2: terminal.echo");
    session.end().assert_powered_off();
}

/// A guest of a configuration with sockets.
fn guest(name: &str, words: &str, device: &str) -> String {
    format!(
        "[[guest]]\nname = \"{name}\"\nkernel = \"{}\"\nmemory = \"64M\"\nappend = \"{words}\"\n\
         device = [\"{device}\"]\n",
        built::conformance().display()
    )
}

#[test]
fn two_guests_talk_by_sockets() {
    for cpus in [1, 2] {
        let folder = Folder::new();
        let guests = guest("one", "dial=4", "vsock=3") + &guest("two", "dial=3", "vsock=4");
        let text = format!("console = \"prefix\"\ncpus = {cpus}\n{guests}");
        let config = folder.file("roost.toml", text.as_bytes());
        let ended = folder.run_config(&config).limit(240).to_end();
        ended.assert_powered_off();
        for (guest, stats) in ["one", "two"].iter().zip(&ended.guests) {
            let line = format!("{guest}| # sent and received 200");
            assert!(ended.said.out.contains(&line), "{}", ended.said.out);
            assert!(stats.counter("vsock_sent") >= 202, "{stats:?}");
        }
    }
}

/// The seed comes from the machine's device where the CPU has none, and a guest without either is refused.
#[test]
fn random_bytes_have_a_source() {
    let folder = Folder::new();
    let run = || {
        let run = folder.run(&built::conformance()).memory("64M").append("only=entropy");
        run.option("--device", "entropy").option("--cpu", "qemu64")
    };
    let ended = run().to_end();
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    assert!(report.has_passed("entropy.random"), "{report:?}");
    let line = "entropy: of the machine's device: true, of the CPU: false";
    assert!(ended.log.contains(line), "{}", ended.log);
    ended.assert_powered_off();
}

#[test]
fn devices_that_cannot_be_are_refused() {
    let folder = Folder::new();
    for (device, reason) in [
        (vec!["random"], "`random` is none of entropy, console, vsock=CID"),
        (vec!["vsock=2"], "`2` is no guest's address: write a number from 3 to"),
        (vec!["entropy", "entropy"], "a guest has one device of each kind"),
    ] {
        let run = folder.run(&built::conformance()).memory("64M");
        let run = device.iter().fold(run, |run, device| run.option("--device", device));
        let ended = run.to_end();
        assert_ne!(ended.said.status, 0, "{:?}", ended.said);
        assert!(ended.said.err.contains(reason), "{:?}", ended.said);
    }
    let guests = guest("one", "dial=4", "vsock=3") + &guest("two", "dial=3", "vsock=3");
    let config = folder.file("roost.toml", guests.as_bytes());
    let ended = folder.run_config(&config).to_end();
    let reason = "address 3 among sockets is that of another guest";
    assert!(ended.said.status != 0 && ended.said.err.contains(reason), "{:?}", ended.said);
}
