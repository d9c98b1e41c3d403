//! A guest on a bridge of the machine, by QEMU's bridge helper: the machine and the guest reach each other, and
//! L1's card leaves to the host what the host does for cards, where it offers that.

use roost_tests::{
    bridge::{self, Bridge},
    built::Kernel,
    folder::Folder,
    net::{DRIVER, add_script, hash, load, noise, serve_at},
    outcome::Ended,
    qemu,
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

const MIB: usize = 1 << 20;
/// The guest's address.
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 99, 2);
/// What QEMU's card does for its driver with a bridge behind it.
const OFFLOADS: [&str; 7] =
    ["csum", "host_tso4", "host_tso6", "guest_csum", "guest_tso4", "guest_tso6", "mrg_rxbuf"];

/// A file that the guest serves.
fn fetch(path: &str) -> Vec<u8> {
    let mut guest = TcpStream::connect((GUEST, 80)).expect("the guest listens");
    guest.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
    guest.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("the guest");
    let mut came = Vec::new();
    guest.read_to_end(&mut came).expect("the guest");
    let head = came.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    came.split_off(head + 4)
}

/// What L1 counted of its own card.
fn counter(ended: &Ended, name: &str) -> u64 {
    let mut lines = ended.log.lines().filter(|line| line.contains("network card"));
    let line = lines.rfind(|line| line.contains(" net_tx_frames ")).expect("its counters");
    let mut words = line.split(' ');
    words.find(|word| *word == name).map_or(0, |_| words.next().unwrap().parse().unwrap())
}

/// Bytes pass both ways; what came of the run, without the card's features that are `off`.
fn both_reach_each_other(kernel: Kernel, off: &[&str]) -> Option<Ended> {
    let folder = Folder::new();
    let bridge = Bridge::new(&folder)?;
    let initrd = folder.busybox_with(kernel, DRIVER, &add_script(&folder));
    let off: String = off.iter().map(|name| format!(",{name}=off")).collect();
    let qemu = qemu::changed(&folder, &format!("s/^virtio-net.*/&{off}/"));
    let run = folder.run(&kernel.file()).initrd(&initrd).limit(240);
    let run = run.option("--net", format!("bridge={}", bridge::NAME)).option("--qemu", qemu);
    let mut guest = run.append("console=hvc0 quiet").beside(&bridge).piped();
    guest.expect_shell();
    load(&mut guest, "eth0");
    guest.succeed(&format!("ip addr add {GUEST}/24 dev eth0 && ip link set eth0 up"));
    guest.succeed(&format!("ping -c 3 -W 5 {}", bridge::HOST));

    let file = noise(8 * MIB);
    let port = serve_at(bridge::HOST, file.clone());
    guest.succeed(&format!("wget -q -O /tmp/file http://{}:{port}/file", bridge::HOST));
    let sum = guest.succeed("sha256sum /tmp/file");
    assert!(sum.starts_with(&hash(&folder, &file)), "{sum}");
    guest.succeed("httpd -h /tmp");
    assert!(fetch("/file") == file, "other bytes came back");

    assert_eq!(guest.shell("dmesg | grep -E 'WARNING: |BUG: |Oops|hw csum failure'").0, 1);
    guest.send("poweroff\n");
    let ended = guest.end();
    ended.assert_powered_off();
    // TCP sends again what a full queue has cost.
    for name in ["net_tx_malformed", "net_rx_too_long"] {
        assert_eq!(counter(&ended, name), 0, "{name}: {}", ended.log);
    }
    assert!(counter(&ended, "net_tx_bytes") > 8 * MIB as u64, "{}", ended.log);
    assert!(counter(&ended, "net_rx_bytes") > 8 * MIB as u64, "{}", ended.log);
    Some(ended)
}

#[test]
fn a_guest_of_6_1_is_on_a_bridge() {
    let Some(ended) = both_reach_each_other(Kernel::Cloud, &[]) else { return };
    // They went and came undivided, and the guest took them so.
    assert!(counter(&ended, "net_tx_long") > 100, "{}", ended.log);
    assert!(counter(&ended, "net_rx_long") > 100, "{}", ended.log);
    assert!(counter(&ended, "net_rx_frames") < 4000, "{}", ended.log);
    assert!(ended.guests[0].counter("net_rx_long") > 100, "{:?}", ended.guests);
}

#[test]
fn the_card_need_not_do_anything() {
    let Some(ended) = both_reach_each_other(Kernel::Cloud612, &OFFLOADS) else { return };
    assert_eq!(counter(&ended, "net_tx_long") + counter(&ended, "net_rx_long"), 0, "{}", ended.log);
    assert!(counter(&ended, "net_tx_frames") > 5000, "{}", ended.log);
}

/// Guests of two machines reach each other; one machine ends, and the other's guest goes on.
#[test]
fn two_machines_are_on_one_bridge() {
    let folders = [Folder::new(), Folder::new()];
    let Some(bridge) = Bridge::new(&folders[0]) else { return };
    let addresses = [GUEST, Ipv4Addr::new(192, 168, 99, 3)];
    let start = |number: usize| {
        let (folder, kernel) = (&folders[number], Kernel::Cloud);
        let initrd = folder.busybox_with(kernel, DRIVER, &add_script(folder));
        let run = folder.run(&kernel.file()).initrd(&initrd).limit(240).beside(&bridge);
        // Both guests have the same name.
        let net = format!("bridge={},mac=02:00:00:00:00:{number:02x}", bridge::NAME);
        let mut guest = run.option("--net", net).append("console=hvc0 quiet").piped();
        guest.expect_shell();
        load(&mut guest, "eth0");
        let address = addresses[number];
        guest.succeed(&format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up"));
        guest
    };
    let [mut first, mut second] = [0, 1].map(start);
    first.succeed(&format!("ping -c 3 -W 5 {}", addresses[1]));
    first.succeed("head -c 4194304 /dev/urandom >/tmp/file && httpd -h /tmp");
    let sum = first.succeed("sha256sum </tmp/file");
    assert_eq!(second.succeed(&format!("wget -q -O - http://{GUEST}/file | sha256sum")), sum);
    first.send("poweroff\n");
    first.end().assert_powered_off();
    assert_ne!(second.shell(&format!("ping -c 1 -W 1 {GUEST}")).0, 0);
    second.succeed(&format!("ping -c 3 -W 5 {}", bridge::HOST));
    second.send("poweroff\n");
    second.end().assert_powered_off();
}

/// A device that divides and does not let others divide: what L1 does not leave to it, it does itself.
#[test]
fn the_card_may_do_some() {
    let off = ["host_tso6", "guest_tso6", "mrg_rxbuf"];
    let Some(ended) = both_reach_each_other(Kernel::Cloud, &off) else { return };
    assert!(counter(&ended, "net_tx_long") > 100, "{}", ended.log);
    assert_eq!(counter(&ended, "net_rx_long"), 0, "{}", ended.log);
}
