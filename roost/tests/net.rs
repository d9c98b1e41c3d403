//! Networks: what the user asks for is what L1 and QEMU are told, and what cannot be is refused.

mod support;

use pv_abi::bundle::{Bundle, Card, Network, Uplink, exit};
use std::{collections::HashSet, fs, net::UdpSocket};
use support::{Bench, Said, end};

const GUEST: &str = "[[guest]]\nname = \"a\"\nkernel = \"kernel\"\nmemory = \"64M\"\n";

/// A second guest with `nets` for its cards, and a first with none.
fn bench(nets: &str) -> Bench {
    let bench = Bench::with_l1(&end(exit::POWEROFF));
    let text = format!("accel = \"tcg\"\n{GUEST}{}{nets}", GUEST.replace("\"a\"", "\"b\""));
    bench.file("vms.toml", text.as_bytes());
    bench
}

fn run(bench: &Bench, args: &[&str]) -> Said {
    Said::by(&mut bench.roost(&[&["run", "--config", "vms.toml"], args].concat()))
}

fn refused(nets: &str, words: &[&str]) {
    let said = run(&bench(nets), &[]);
    assert_eq!(said.status, 2, "{said:?}");
    for word in words {
        assert!(said.line().contains(word), "`{word}` is not in: {}", said.err);
    }
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

#[test]
fn l1_is_told_of_cards() {
    let bench = bench(
        "[[guest.net]]\nnetwork = \"lan\"\nmac = \"02:00:00:00:00:07\"\nip = \"192.168.0.7\"\n\
         rate = \"80M\"\nmtu = 9000\n[[guest.net]]\nnetwork = \"lan\"\n\
         [[guest.net]]\nnetwork = \"other\"\n",
    );
    let said = run(&bench, &["--pack", "module"]);
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");
    let bundle = Bundle::decode(&fs::read(bench.path("module")).unwrap()).unwrap();
    let network = |name: &str| Network { name: name.into(), uplink: None };
    assert_eq!(bundle.networks, [network("lan"), network("other")]);
    assert!(bundle.guests[0].cards.is_empty());
    let [first, second, third] = &bundle.guests[1].cards[..] else { panic!("three cards") };
    let expected = Card {
        slot: 0,
        network: "lan".into(),
        mac: Some([2, 0, 0, 0, 0, 7]),
        ip: Some([192, 168, 0, 7]),
        rate: 10_000_000,
        mtu: 9000,
    };
    assert_eq!(*first, expected);
    assert_eq!((second.slot, second.ip, second.rate, second.mtu), (1, None, 0, 1500));
    assert_eq!((third.slot, third.network.as_str()), (2, "other"));
    let macs: HashSet<_> = bundle.guests[1].cards.iter().map(|card| card.mac).collect();
    assert_eq!(macs.len(), 3);
}

#[test]
fn cards_of_a_machine_that_is_none_of_ours() {
    let card = |network: &str| format!("[[guest.net]]\nnetwork = \"{network}\"\n");
    let named = [2, 0, 0, 0, 0, 8];
    let bench = bench(&(card("card=02:00:00:00:00:08") + &card("card")));
    let said = run(&bench, &["--pack", "module"]);
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");
    let bundle = Bundle::decode(&fs::read(bench.path("module")).unwrap()).unwrap();
    let uplinks: Vec<_> = bundle.networks.iter().map(|network| network.uplink).collect();
    assert_eq!(uplinks, [Some(Uplink::Address(named)), Some(Uplink::First)]);
    let macs: Vec<_> = bundle.guests[1].cards.iter().map(|card| card.mac).collect();
    assert_eq!(macs, [Some(named), None]);
    let said = run(&bench, &[]);
    assert!(said.line().contains("is for an image, or --pack: take `user`"), "{said:?}");
}

#[test]
fn qemu_is_told_of_ways_out() {
    let (tcp, udp) = (free_port(), free_port());
    let bench = bench(&format!(
        "[[guest.net]]\nnetwork = \"user\"\nip = \"10.0.2.20\"\nforward = [\"{tcp}:80\", \"udp:{udp}\"]\n\
         [[guest.net]]\nnetwork = \"user\"\n[[guest.net]]\nnetwork = \"lan\"\n"
    ));
    let said = run(&bench, &["--verbose"]);
    let netdev = format!(
        "-netdev user,id=net0,hostfwd=tcp:127.0.0.1:{tcp}-10.0.2.20:80,\
         hostfwd=udp:127.0.0.1:{udp}-10.0.2.20:{udp} -device virtio-net-pci,disable-legacy=on,netdev=net0,mac=02:"
    );
    assert!(said.err.contains(&netdev), "{said:?}");
    assert_eq!(said.err.matches("-netdev ").count(), 1, "one for both, none for `lan`: {said:?}");
}

#[test]
fn without_a_network_there_is_no_card() {
    for option in [&[][..], &["--net", "none"]] {
        let bench = bench("");
        let args = [&["run", "--kernel", "kernel", "--accel", "tcg", "--verbose"], option].concat();
        let said = Said::by(&mut bench.roost(&args));
        assert!(!said.err.contains("-netdev"), "{said:?}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let net = |keys: &str| format!("[[guest.net]]\n{keys}\n");
    refused(&net("mtu = 1500"), &["missing field `network`"]);
    refused(&net("network = \"a b\""), &["`a b` is no name of a network"]);
    refused(&net("network = \"lan\"\nmac = \"01:00:00:00:00:00\""), &["no address of a card"]);
    refused(&net("network = \"lan\"\nrate = \"fast\""), &["`fast` is no rate"]);
    refused(&net("network = \"lan\"\nmtu = 9001"), &["out of range: use 576 to 9000"]);
    refused(&net("network = \"lan\"\nforward = [\"80\"]"), &["guest 'b'", "on `lan`"]);
    refused(&net("network = \"user\"\nforward = [\"x\"]"), &["`x` is no forward"]);
    refused(&net("network = \"user\"\nip = \"10.0.3.1\""), &["guest 'b'", "none for a guest"]);
    refused(&net("network = \"bridge=nobridge0\""), &["no bridge `nobridge0`"]);
    let port = free_port();
    let forward = format!("network = \"user\"\nforward = [\"{port}\"]");
    refused(&net(&forward).repeat(2), &["forwarded twice"]);
    refused(&format!("{}{}", net(&forward), net("network = \"user\"")), &["needs an `ip`"]);
    let same = net("network = \"lan\"\nmac = \"02:00:00:00:00:01\"");
    refused(&same.repeat(2), &["02:00:00:00:00:01 is that of another card"]);
    refused(&net("network = \"lan\"").repeat(17), &["16 disks and network cards at most"]);
    let said = run(&bench(&net("network = \"user\"")), &["--pack", "module"]);
    assert!(said.line().contains("cannot be used with --pack"), "{said:?}");
}
