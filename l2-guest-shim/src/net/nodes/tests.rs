//! The talk between a front end and a network card, by the store.

use super::*;
use crate::xenbus::fake::Talk;
use pv_abi::ext::devices::SLOTS;

const PROPERTIES: Properties = Properties {
    mac: [0x52, 0x54, 0, 0xab, 0xcd, 1],
    mtu: Some(1500),
    tso4: true,
    tso6: false,
    spacer: true,
    pairs: 3,
};

fn talk() -> Talk<Asked> {
    let mut store = Box::new(Store::new());
    let backend = backend(2);
    place(&backend, &mut store, &PROPERTIES, PROPERTIES.most_pairs()).unwrap();
    Talk::new(store, backend, |front| asked(front, PROPERTIES.most_pairs()))
}

fn pairs(pairs: &[[(u32, u32); 2]]) -> Option<Vec<Pair>> {
    let ring = |(ring, port)| Ring { ring, port };
    let pair =
        |[transmit, receive]: [_; 2]| Pair { transmit: ring(transmit), receive: ring(receive) };
    Some(pairs.iter().map(|&both| pair(both)).collect())
}

/// The pairs that are wanted.
fn wanted(talk: &Talk<Asked>) -> Option<Vec<Pair>> {
    talk.asked.wanted.as_ref().map(|asked| asked.pairs.to_vec())
}

/// A front end has written where the rings of two pairs are, the first with a port for both, and what `nodes` says.
fn several(nodes: &[(&str, &str)]) -> Talk<Asked> {
    let mut talk = talk();
    for (name, value) in [
        ("/multi-queue-num-queues", "2"),
        ("/request-rx-copy", "1"),
        ("/queue-0/tx-ring-ref", "8"),
        ("/queue-0/rx-ring-ref", "9"),
        ("/queue-0/event-channel", "12"),
        ("/queue-1/tx-ring-ref", "10"),
        ("/queue-1/rx-ring-ref", "11"),
        ("/queue-1/event-channel-tx", "13"),
        ("/queue-1/event-channel-rx", "14"),
    ]
    .iter()
    .chain(nodes)
    {
        talk.write(name, value);
    }
    talk.state(4);
    talk
}

#[test]
fn the_store_says_what_the_card_is() {
    let talk = talk();
    for (name, value) in [
        ("/state", Some("2")),
        ("/handle", Some("2")),
        ("/feature-rx-copy", Some("1")),
        ("/feature-sg", Some("1")),
        ("/feature-gso-tcpv4", Some("1")),
        ("/feature-gso-tcpv6", Some("0")),
        ("/feature-split-event-channels", Some("1")),
        ("/multi-queue-max-queues", Some("3")),
        ("/frontend", Some("/local/domain/1/device/vif/2")),
        ("/feature-no-csum-offload", None),
    ] {
        assert_eq!(talk.back(name).as_deref(), value, "{name}");
    }
    let front = |name: &str| {
        talk.store
            .value(format!("/local/domain/1/device/vif/2/{name}").as_bytes())
            .unwrap()
            .to_vec()
    };
    assert_eq!(front("mac"), b"52:54:00:ab:cd:01");
    assert_eq!(front("mtu"), b"1500");
    assert_eq!(front("backend"), b"/local/domain/0/backend/vif/1/2");
}

#[test]
fn a_front_end_connects_again_and_again() {
    let mut talk = talk();
    for ports in [
        &[("/event-channel", "12")][..],
        &[("/event-channel-tx", "13"), ("/event-channel-rx", "14")],
    ] {
        for &(name, value) in
            [("/tx-ring-ref", "8"), ("/rx-ring-ref", "9"), ("/request-rx-copy", "1")]
                .iter()
                .chain(ports)
        {
            talk.write(name, value);
        }
        assert_eq!(talk.is(), "2");
        talk.state(4);
        let (tx, rx) = if ports.len() == 1 { (12, 12) } else { (13, 14) };
        assert_eq!(wanted(&talk), pairs(&[[(8, tx), (9, rx)]]));
        let blank = talk.asked.wanted.as_ref().map(|asked| asked.blank);
        assert_eq!((talk.is().as_str(), blank), ("4", Some(Blank::Taken)));
        talk.state(5);
        talk.state(6);
        assert_eq!((talk.is().as_str(), wanted(&talk)), ("6", None));
        talk.state(1);
        assert_eq!(talk.is(), "2");
    }
}

#[test]
fn long_segments_are_taken_by_who_says_so() {
    let long = |said: &[&str]| {
        let mut talk = talk();
        let all = ["tx-ring-ref", "rx-ring-ref", "event-channel", "request-rx-copy"];
        for name in all.iter().chain(said) {
            talk.write(&format!("/{name}"), "1");
        }
        talk.state(4);
        talk.asked.wanted.unwrap().long
    };
    let (gso4, gso6, sum6) =
        ("feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload");
    assert_eq!(long(&["feature-sg", gso4]), Cuts { v4: true, v6: false });
    assert_eq!(long(&["feature-sg", gso4, gso6, sum6]), Cuts { v4: true, v6: true });
    assert_eq!(long(&["feature-sg", gso6]), Cuts::default(), "no checksums are left to it");
    assert_eq!(long(&[gso4]), Cuts::default(), "they do not fit a page");
    assert_eq!(long(&["feature-sg", gso4, "feature-no-csum-offload"]), Cuts::default());
}

#[test]
fn what_it_says_must_make_sense() {
    let all = [
        ("/tx-ring-ref", "8"),
        ("/rx-ring-ref", "9"),
        ("/event-channel", "12"),
        ("/request-rx-copy", "1"),
        ("/feature-no-csum-offload", "1"),
    ];
    for bad in 0..=4 {
        for value in ["", "x", "-1", "0"] {
            let mut talk = talk();
            for (number, (name, good)) in all.into_iter().enumerate() {
                talk.write(name, if number == bad { value } else { good });
            }
            talk.state(4);
            // A grant or port 0 is a number; who looks it up refuses it.
            let taken = bad == 4 || (value == "0" && bad < 3);
            assert_eq!(talk.asked.wanted.is_some(), taken, "{} {value}", all[bad].0);
            let blank = if bad == 4 { Blank::Taken } else { Blank::Refused };
            assert!(talk.asked.wanted.as_ref().is_none_or(|asked| asked.blank == blank));
            assert_eq!(talk.is(), if taken { "4" } else { "5" });
        }
    }
}

#[test]
fn a_front_end_may_have_several_pairs() {
    let two = [[(8, 12), (9, 12)], [(10, 13), (11, 14)]];
    let talk = several(&[]);
    assert_eq!((talk.is().as_str(), wanted(&talk)), ("4", pairs(&two)));
    let talk = several(&[
        ("/multi-queue-num-queues", "3"),
        ("/queue-2/tx-ring-ref", "15"),
        ("/queue-2/rx-ring-ref", "16"),
        ("/queue-2/event-channel", "17"),
    ]);
    let three = [two[0], two[1], [(15, 17), (16, 17)]];
    assert_eq!((talk.is().as_str(), wanted(&talk)), ("4", pairs(&three)));
    // One has no folder, whether it says so or not.
    let talk = several(&[
        ("/multi-queue-num-queues", "1"),
        ("/tx-ring-ref", "20"),
        ("/rx-ring-ref", "21"),
        ("/event-channel", "22"),
    ]);
    assert_eq!((talk.is().as_str(), wanted(&talk)), ("4", pairs(&[[(20, 22), (21, 22)]])));
}

#[test]
fn several_pairs_must_make_sense() {
    for (name, value) in [
        ("/multi-queue-num-queues", "0"),
        ("/multi-queue-num-queues", "4"),
        ("/multi-queue-num-queues", "4294967295"),
        ("/multi-queue-num-queues", "4294967297"),
        ("/multi-queue-num-queues", "-1"),
        ("/multi-queue-num-queues", ""),
        ("/multi-queue-num-queues", "two"),
        // There is no third folder, and nothing beside the state.
        ("/multi-queue-num-queues", "3"),
        ("/multi-queue-num-queues", "1"),
        ("/queue-1/tx-ring-ref", "x"),
        ("/queue-1/rx-ring-ref", ""),
        ("/queue-1/event-channel-rx", "-1"),
        ("/queue-0/event-channel", ""),
        // Named twice.
        ("/queue-1/tx-ring-ref", "8"),
        ("/queue-1/tx-ring-ref", "9"),
        ("/queue-1/rx-ring-ref", "8"),
        ("/queue-1/event-channel-tx", "12"),
        ("/queue-0/event-channel", "14"),
        ("/request-rx-copy", "0"),
    ] {
        let talk = several(&[(name, value)]);
        assert_eq!((talk.is().as_str(), wanted(&talk)), ("5", None), "{name} {value}");
    }
}

#[test]
fn cards_in_every_slot_fit() {
    let mut store = Box::new(Store::new());
    let most = Properties { mtu: Some(u16::MAX), ..PROPERTIES };
    for index in 0..SLOTS as u32 {
        place(&backend(index), &mut store, &most, PAIRS_MOST).unwrap();
    }
    store.assert_has_room(1000 * SLOTS);
}
