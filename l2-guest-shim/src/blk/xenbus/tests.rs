//! The talk between a front end and a disk, by the store.

use super::*;
use crate::store::{Header, Message};

/// What the front end has asked for, as long as it may.
#[derive(Debug, Default)]
struct Asked {
    ring: Option<(u32, u32)>,
    refuse: bool,
}

impl Peer for Asked {
    fn connect(&mut self, ring: u32, port: u32) -> bool {
        if !self.refuse {
            self.ring = Some((ring, port));
        }
        !self.refuse
    }

    fn disconnect(&mut self) {
        self.ring = None;
    }
}

struct World {
    store: Box<Store>,
    backend: Backend,
    asked: Asked,
}

const WRITE: u32 = 11;
const RM: u32 = 13;

impl World {
    fn new() -> Self {
        let mut store = Box::new(Store::new());
        let backend = Backend::new(0);
        let properties =
            Properties { sectors: 2048, block: 512, segments: 64, read_only: true, flush: true };
        backend.place(&mut store, &properties).unwrap();
        Self { store, backend, asked: Asked::default() }
    }

    /// The kernel's request about one of its nodes, and what the device makes of it.
    fn front(&mut self, kind: u32, rest: &str) {
        let mut out = Message::new();
        let payload = format!("device/vbd/51712{rest}");
        let header = Header { kind, request: 0, transaction: 0, len: payload.len() as u32 };
        self.store.answer(header, payload.as_bytes(), &mut out);
        assert!(out.rest().ends_with(b"OK\0"), "{payload}");
        self.backend.look(&mut self.store, &mut self.asked).unwrap();
        while self.store.next_event(&mut out) {}
    }

    fn state(&mut self, state: u32) {
        self.front(WRITE, &format!("/state\0{state}"));
    }

    fn back(&self, name: &str) -> String {
        let path = format!("/local/domain/0/backend/vbd/1/51712/{name}");
        String::from_utf8(self.store.value(path.as_bytes()).unwrap().to_vec()).unwrap()
    }

    fn prepare(&mut self) {
        for rest in ["/ring-ref\x008", "/event-channel\x0012", "/protocol\0x86_64-abi"] {
            self.front(WRITE, rest);
        }
    }
}

#[test]
fn the_store_says_what_the_disk_is() {
    let world = World::new();
    for (name, value) in [
        ("state", "2"),
        ("sectors", "2048"),
        ("sector-size", "512"),
        ("info", "4"),
        ("mode", "r"),
        ("feature-flush-cache", "1"),
        ("feature-barrier", "0"),
        ("feature-max-indirect-segments", "32"),
        ("frontend", "/local/domain/1/device/vbd/51712"),
    ] {
        assert_eq!(world.back(name), value, "{name}");
    }
    let backend = world.store.value(b"/local/domain/1/device/vbd/51712/backend");
    assert_eq!(backend, Some(&b"/local/domain/0/backend/vbd/1/51712"[..]));
    assert_eq!(Backend::new(1).number(), 51728, "xvdb");
}

#[test]
fn they_connect_part_and_connect_again() {
    let mut world = World::new();
    for _ in 0..3 {
        world.prepare();
        assert_eq!((world.back("state"), world.asked.ring), ("2".into(), None));
        world.state(3);
        assert_eq!((world.back("state"), world.asked.ring), ("4".into(), Some((8, 12))));
        world.state(4);
        assert_eq!(world.back("state"), "4");
        world.state(5);
        assert_eq!((world.back("state"), world.asked.ring), ("5".into(), None));
        world.state(6);
        assert_eq!(world.back("state"), "6");
        world.state(1);
        assert_eq!(world.back("state"), "2");
    }
}

#[test]
fn a_front_end_that_is_gone_is_disconnected() {
    for gone in ["\0", "/state\0"] {
        let mut world = World::new();
        world.prepare();
        world.state(3);
        world.front(RM, gone);
        assert_eq!((world.back("state"), world.asked.ring), ("6".into(), None));
    }
    let mut world = World::new();
    world.prepare();
    world.state(4);
    world.state(1);
    assert_eq!((world.back("state"), world.asked.ring), ("2".into(), None), "it starts anew");
}

#[test]
fn what_it_says_must_make_sense() {
    for (name, value) in
        [("ring-ref", "x"), ("ring-ref", ""), ("event-channel", "-1"), ("protocol", "x86_32-abi")]
    {
        let mut world = World::new();
        world.prepare();
        world.front(WRITE, &format!("/{name}\0{value}"));
        world.state(3);
        assert_eq!((world.back("state"), world.asked.ring), ("5".into(), None), "{name}");
    }
    let mut world = World::new();
    world.state(3);
    assert_eq!(world.back("state"), "5", "it has said nothing");
    let mut world = World::new();
    world.asked.refuse = true;
    world.prepare();
    world.state(3);
    assert_eq!(world.back("state"), "5");
    // States that mean nothing to a disk, and none at all.
    let mut world = World::new();
    for state in [2, 7, 8] {
        world.state(state);
        assert_eq!(world.back("state"), "2");
    }
    world.front(WRITE, "/state\0nonsense");
    assert_eq!(world.back("state"), "6");
}

#[test]
fn ten_disks_of_a_guest_of_32_fit() {
    let mut store = Box::new(Store::new());
    let properties = Properties {
        sectors: u64::MAX,
        block: u32::MAX,
        segments: 64,
        read_only: false,
        flush: true,
    };
    for index in 0..10 {
        Backend::new(index).place(&mut store, &properties).unwrap();
    }
    for vcpu in 0..32 {
        store
            .place(format!("/local/domain/1/cpu/{vcpu}/availability").as_bytes(), b"online")
            .unwrap();
    }
    assert!(store.used() < 24 << 10, "a quarter is left for the kernel: {}", store.used());
}
