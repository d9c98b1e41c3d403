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
};

fn talk() -> Talk<Asked> {
    let mut store = Box::new(Store::new());
    let backend = backend(0);
    place(&backend, &mut store, &PROPERTIES).unwrap();
    Talk::new(store, backend, asked)
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
    let connected = Some(Asked { ring: 8, port: 12 });
    for _ in 0..3 {
        prepare(&mut talk);
        assert_eq!((talk.is().as_str(), talk.asked.wanted), ("2", None));
        talk.state(3);
        assert_eq!((talk.is().as_str(), talk.asked.wanted), ("4", connected));
        talk.state(4);
        assert_eq!(talk.is(), "4");
        talk.state(5);
        assert_eq!((talk.is().as_str(), talk.asked.wanted), ("5", None));
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
        assert_eq!((talk.is().as_str(), talk.asked.wanted), ("6", None));
    }
    let mut talk = prepared();
    talk.state(4);
    talk.state(1);
    assert_eq!((talk.is().as_str(), talk.asked.wanted), ("2", None), "it starts anew");
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
        assert_eq!((talk.is().as_str(), talk.asked.wanted), ("5", None), "{name}");
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
