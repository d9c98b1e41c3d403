//! The talk between a front end and a disk, by the store.

use super::*;
use crate::xenbus::fake::Talk;
use pv_abi::ext::devices::SLOTS;

const PROPERTIES: Properties = Properties {
    sectors: 2048,
    block: 512,
    segments: 64,
    read_only: true,
    flush: true,
    discard: None,
    queues: 3,
};

fn talk() -> Talk<Asked> {
    let mut store = Box::new(Store::new());
    let backend = backend(0);
    place(&backend, &mut store, &PROPERTIES).unwrap();
    Talk::new(store, backend, |front| asked(front, PROPERTIES.queues))
}

fn rings(rings: &[(u32, u32)]) -> Asked {
    rings.iter().map(|&(grant, port)| Ring { grant, port }).collect()
}

/// A front end has written where its rings are, and what `nodes` says.
fn several(nodes: &[(&str, &str)]) -> Talk<Asked> {
    let mut talk = talk();
    talk.write("/multi-queue-num-queues", "2");
    for (queue, ring, port) in [(0, "8", "12"), (1, "9", "13")] {
        talk.write(&format!("/queue-{queue}/ring-ref"), ring);
        talk.write(&format!("/queue-{queue}/event-channel"), port);
    }
    nodes.iter().for_each(|(name, value)| talk.write(name, value));
    talk.state(3);
    talk
}

fn prepare(talk: &mut Talk<Asked>) {
    for (name, value) in [("/ring-ref", "8"), ("/event-channel", "12"), ("/protocol", "x86_64-abi")]
    {
        talk.write(name, value);
    }
}

fn prepared() -> Talk<Asked> {
    let mut talk = talk();
    prepare(&mut talk);
    talk
}

#[test]
fn the_store_says_what_the_disk_is() {
    let talk = talk();
    for (name, value) in [
        ("/state", "2"),
        ("/sectors", "2048"),
        ("/sector-size", "512"),
        ("/info", "4"),
        ("/mode", "r"),
        ("/feature-flush-cache", "1"),
        ("/feature-barrier", "0"),
        ("/feature-max-indirect-segments", "32"),
        ("/multi-queue-max-queues", "3"),
        ("/frontend", "/local/domain/1/device/vbd/51712"),
    ] {
        assert_eq!(talk.back(name).as_deref(), Some(value), "{name}");
    }
    let backend = talk.store.value(b"/local/domain/1/device/vbd/51712/backend");
    assert_eq!(backend, Some(&b"/local/domain/0/backend/vbd/1/51712"[..]));
    assert_eq!(super::backend(1).number(), 51728, "xvdb");
}

#[test]
fn they_connect_part_and_connect_again() {
    let mut talk = talk();
    let connected = Some(rings(&[(8, 12)]));
    for _ in 0..3 {
        prepare(&mut talk);
        assert_eq!((talk.is().as_str(), talk.asked.wanted.clone()), ("2", None));
        talk.state(3);
        assert_eq!((talk.is().as_str(), &talk.asked.wanted), ("4", &connected));
        talk.state(4);
        assert_eq!(talk.is(), "4");
        talk.state(5);
        assert_eq!((talk.is().as_str(), talk.asked.wanted.clone()), ("5", None));
        talk.state(6);
        assert_eq!(talk.is(), "6");
        talk.state(1);
        assert_eq!(talk.is(), "2");
    }
}

#[test]
fn a_front_end_that_is_gone_is_disconnected() {
    for gone in ["", "/state"] {
        let mut talk = prepared();
        talk.state(3);
        assert!(talk.asked.wanted.is_some());
        talk.remove(gone);
        assert_eq!((talk.is().as_str(), talk.asked.wanted.clone()), ("6", None));
    }
    let mut talk = prepared();
    talk.state(4);
    talk.state(1);
    assert_eq!((talk.is().as_str(), talk.asked.wanted.clone()), ("2", None), "it starts anew");
}

#[test]
fn what_it_says_must_make_sense() {
    for (name, value) in [
        ("/ring-ref", "x"),
        ("/ring-ref", ""),
        ("/event-channel", "-1"),
        ("/protocol", "x86_32-abi"),
    ] {
        let mut talk = prepared();
        talk.write(name, value);
        talk.state(3);
        assert_eq!((talk.is().as_str(), talk.asked.wanted.clone()), ("5", None), "{name}");
    }
    let mut silent = talk();
    silent.state(3);
    assert_eq!(silent.is(), "5", "it has said nothing");
    let mut refused = prepared();
    refused.asked.refuse = true;
    refused.state(3);
    assert_eq!(refused.is(), "5");
    // States that mean nothing to a disk, and none at all.
    let mut odd = talk();
    for state in [2, 7, 8] {
        odd.state(state);
        assert_eq!(odd.is(), "2");
    }
    odd.write("/state", "nonsense");
    assert_eq!(odd.is(), "6");
}

#[test]
fn a_front_end_may_have_several_rings() {
    let two = several(&[]);
    assert_eq!((two.is().as_str(), &two.asked.wanted), ("4", &Some(rings(&[(8, 12), (9, 13)]))));
    let three = several(&[
        ("/multi-queue-num-queues", "3"),
        ("/queue-2/ring-ref", "10"),
        ("/queue-2/event-channel", "14"),
    ]);
    let expected = rings(&[(8, 12), (9, 13), (10, 14)]);
    assert_eq!((three.is().as_str(), &three.asked.wanted), ("4", &Some(expected)));
    // One has no folder, whether it says so or not.
    let mut one = prepared();
    one.write("/multi-queue-num-queues", "1");
    one.state(3);
    assert_eq!((one.is().as_str(), &one.asked.wanted), ("4", &Some(rings(&[(8, 12)]))));
}

#[test]
fn several_rings_must_make_sense() {
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
        ("/queue-1/ring-ref", "x"),
        ("/queue-1/event-channel", ""),
        ("/queue-1/ring-ref", "8"),
        ("/queue-0/event-channel", "13"),
        ("/protocol", "x86_32-abi"),
    ] {
        let talk = several(&[(name, value)]);
        let found = (talk.is(), talk.asked.wanted.clone());
        assert_eq!(found, ("5".to_owned(), None), "{name} {value}");
    }
}

#[test]
fn disks_in_every_slot_fit() {
    let mut store = Box::new(Store::new());
    let most = Properties {
        sectors: u64::MAX,
        block: u32::MAX,
        read_only: false,
        discard: Some(Discard { most: u32::MAX, alignment: u32::MAX }),
        ..PROPERTIES
    };
    for index in 0..SLOTS as u32 {
        place(&backend(index), &mut store, &most).unwrap();
    }
    store.assert_has_room(800 * SLOTS);
}
