//! The store as a kernel meets it: through two rings of bytes.

use super::*;
use crate::store::wire::{HEADER, PAYLOAD};
use proptest::prelude::*;
use std::collections::VecDeque;

/// Both rings, with room for 1024 bytes of answers.
#[derive(Default)]
struct Rings {
    requests: VecDeque<u8>,
    answers: VecDeque<u8>,
}

const ROOM: usize = 1024;

impl Pipe for Rings {
    fn read(&mut self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.requests.len());
        out.iter_mut().zip(self.requests.drain(..count)).for_each(|(to, from)| *to = from);
        count
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(ROOM - self.answers.len());
        self.answers.extend(&bytes[..count]);
        count
    }
}

/// A kernel with its store.
struct Kernel {
    store: Box<Store>,
    connection: Box<Connection>,
    rings: Rings,
}

impl Kernel {
    fn new() -> Self {
        let mut store = Box::new(Store::new());
        store.place(b"/local/domain/1/domid", b"1").unwrap();
        store.place(b"/local/domain/0/backend/x", b"y").unwrap();
        let mut kernel = Self { store, connection: Box::default(), rings: Rings::default() };
        assert_eq!(kernel.messages(), []);
        kernel
    }

    fn send(&mut self, kind: u32, transaction: u32, payload: &[u8]) {
        let header = Header { kind, request: 9, transaction, len: payload.len() as u32 };
        self.rings.requests.extend(header.bytes());
        self.rings.requests.extend(payload);
    }

    /// All messages that come, until none does.
    fn messages(&mut self) -> Vec<(u32, Vec<u8>)> {
        let (mut bytes, mut before) = (Vec::new(), 0);
        loop {
            let moved = self.connection.serve(&mut self.store, &mut self.rings, |_| {});
            bytes.extend(self.rings.answers.drain(..));
            if !moved && bytes.len() == before {
                break;
            }
            before = bytes.len();
        }
        let mut messages = Vec::new();
        let mut rest = &bytes[..];
        while let Some((header, body)) = rest.split_first_chunk::<HEADER>() {
            let header = Header::parse(*header);
            let (payload, next) = body.split_at(header.len as usize);
            messages.push((header.kind, payload.to_vec()));
            rest = next;
        }
        assert!(rest.is_empty());
        messages
    }

    /// The answer to a request that causes no events.
    fn ask(&mut self, kind: u32, transaction: u32, payload: &[u8]) -> Result<Vec<u8>, String> {
        self.send(kind, transaction, payload);
        let mut messages = self.messages();
        assert_eq!(messages.len(), 1, "{messages:?}");
        match messages.remove(0) {
            (kind::ERROR, name) => Err(String::from_utf8(name[..name.len() - 1].to_vec()).unwrap()),
            (answered, payload) if answered == kind => Ok(payload),
            other => panic!("{other:?}"),
        }
    }

    fn start(&mut self) -> u32 {
        let number = self.ask(kind::TRANSACTION_START, 0, b"\0").unwrap();
        wire::number(&number[..number.len() - 1]).unwrap()
    }
}

fn ok() -> Result<Vec<u8>, String> {
    Ok(b"OK\0".to_vec())
}

fn error<T>(name: &str) -> Result<T, String> {
    Err(name.to_owned())
}

#[test]
fn nodes_are_written_read_listed_and_removed() {
    let mut kernel = Kernel::new();
    assert_eq!(kernel.ask(kind::READ, 0, b"domid\0"), Ok(b"1".to_vec()));
    assert_eq!(kernel.ask(kind::WRITE, 0, b"a/b\0value"), ok());
    assert_eq!(kernel.ask(kind::MKDIR, 0, b"a/c\0"), ok());
    assert_eq!(kernel.ask(kind::READ, 0, b"/local/domain/1/a/b\0"), Ok(b"value".to_vec()));
    assert_eq!(kernel.ask(kind::DIRECTORY, 0, b"a\0"), Ok(b"b\0c\0".to_vec()));
    assert_eq!(kernel.ask(kind::DIRECTORY, 0, b"/\0"), Ok(b"local\0".to_vec()));
    assert_eq!(kernel.ask(kind::RM, 0, b"a\0"), ok());
    assert_eq!(kernel.ask(kind::RM, 0, b"a\0"), ok());
    assert_eq!(kernel.ask(kind::RM, 0, b"a/b\0"), error("ENOENT"));
    assert_eq!(kernel.ask(kind::READ, 0, b"a/b\0"), error("ENOENT"));
    assert_eq!(kernel.ask(kind::GET_DOMAIN_PATH, 0, b"7\0"), Ok(b"/local/domain/7\0".to_vec()));
    assert_eq!(kernel.ask(kind::IS_DOMAIN_INTRODUCED, 0, b"1\0"), Ok(b"T\0".to_vec()));
    assert_eq!(kernel.ask(kind::IS_DOMAIN_INTRODUCED, 0, b"2\0"), Ok(b"F\0".to_vec()));
}

#[test]
fn only_its_home_is_the_kernels() {
    let mut kernel = Kernel::new();
    for path in
        ["/", "/local", "/local/domain/1", "/local/domain/10/a", "/local/domain/0/backend/x"]
    {
        let path = format!("{path}\0");
        for request in [kind::WRITE, kind::MKDIR, kind::RM, kind::SET_PERMS] {
            assert_eq!(kernel.ask(request, 0, path.as_bytes()), error("EACCES"), "{path}");
        }
    }
    assert_eq!(kernel.ask(kind::READ, 0, b"/local/domain/0/backend/x\0"), Ok(b"y".to_vec()));
}

#[test]
fn permissions_are_kept() {
    let mut kernel = Kernel::new();
    let get = |kernel: &mut Kernel, path: &[u8]| kernel.ask(kind::GET_PERMS, 0, path);
    assert_eq!(get(&mut kernel, b"domid\0"), Ok(b"n1\0".to_vec()));
    assert_eq!(get(&mut kernel, b"/local/domain/0\0"), Ok(b"n0\0r1\0".to_vec()));
    assert_eq!(kernel.ask(kind::SET_PERMS, 0, b"domid\0n1\0r0\0"), ok());
    assert_eq!(get(&mut kernel, b"domid\0"), Ok(b"n1\0r0\0".to_vec()));
    assert_eq!(kernel.ask(kind::SET_PERMS, 0, b"domid\0x1\0"), error("EINVAL"));
    assert_eq!(kernel.ask(kind::SET_PERMS, 0, b"domid\0"), error("EINVAL"));
    assert_eq!(kernel.ask(kind::SET_PERMS, 0, b"none\0n1\0"), error("ENOENT"));
}

#[test]
fn a_watch_tells_after_the_answer() {
    let mut kernel = Kernel::new();
    kernel.send(kind::WATCH, 0, b"a\0token\0");
    let event = |text: &[u8]| (kind::WATCH_EVENT, text.to_vec());
    let done = |kind: u32| (kind, b"OK\0".to_vec());
    assert_eq!(kernel.messages(), [done(kind::WATCH), event(b"a\0token\0")]);
    kernel.send(kind::WRITE, 0, b"a/b\0");
    assert_eq!(kernel.messages(), [done(kind::WRITE), event(b"a/b\0token\0")]);
    assert_eq!(kernel.ask(kind::WATCH, 0, b"a\0token\0"), error("EEXIST"));
    assert_eq!(kernel.ask(kind::UNWATCH, 0, b"a\0token\0"), ok());
    assert_eq!(kernel.ask(kind::UNWATCH, 0, b"a\0token\0"), error("ENOENT"));
    assert_eq!(kernel.ask(kind::WRITE, 0, b"a/b\0"), ok());
}

#[test]
fn a_transaction_happens_at_once_or_not_at_all() {
    let mut kernel = Kernel::new();
    let number = kernel.start();
    assert_eq!(kernel.ask(kind::WRITE, number, b"a\0x"), ok());
    assert_eq!(kernel.ask(kind::READ, number, b"a\0"), Ok(b"x".to_vec()));
    assert_eq!(kernel.ask(kind::READ, 0, b"a\0"), error("ENOENT"));
    assert_eq!(kernel.ask(kind::TRANSACTION_END, number, b"T\0"), ok());
    assert_eq!(kernel.ask(kind::READ, 0, b"a\0"), Ok(b"x".to_vec()));
    assert_eq!(kernel.ask(kind::TRANSACTION_END, number, b"T\0"), error("ENOENT"));

    let number = kernel.start();
    assert_eq!(kernel.ask(kind::WRITE, number, b"a\0y"), ok());
    assert_eq!(kernel.ask(kind::TRANSACTION_END, number, b"F\0"), ok());
    assert_eq!(kernel.ask(kind::READ, 0, b"a\0"), Ok(b"x".to_vec()));
}

#[test]
fn a_disturbed_transaction_is_to_be_repeated() {
    let mut kernel = Kernel::new();
    let (number, other) = (kernel.start(), kernel.start());
    assert_eq!(kernel.ask(kind::TRANSACTION_START, 0, b"\0"), error("ENOSPC"));
    assert_eq!(kernel.ask(kind::WRITE, number, b"a\0x"), ok());
    assert_eq!(kernel.ask(kind::WRITE, 0, b"b\0"), ok());
    assert_eq!(kernel.ask(kind::TRANSACTION_END, number, b"T\0"), error("EAGAIN"));
    assert_eq!(kernel.ask(kind::READ, 0, b"a\0"), error("ENOENT"));
    // One that has only read is never in anybody's way.
    assert_eq!(kernel.ask(kind::READ, other, b"domid\0"), Ok(b"1".to_vec()));
    assert_eq!(kernel.ask(kind::TRANSACTION_END, other, b"T\0"), ok());
}

#[test]
fn long_answers_come_in_pieces() {
    let mut kernel = Kernel::new();
    let value = [b'x'; 2000];
    assert_eq!(kernel.ask(kind::WRITE, 0, &[b"a\0", &value[..]].concat()), ok());
    assert_eq!(kernel.ask(kind::READ, 0, b"a\0"), Ok(value.to_vec()));
    // Nothing more is served while an answer waits for room.
    kernel.send(kind::READ, 0, b"a\0");
    kernel.send(kind::RM, 0, b"a\0");
    assert!(kernel.connection.serve(&mut kernel.store, &mut kernel.rings, |_| {}));
    assert_eq!(kernel.rings.answers.len(), ROOM);
    assert!(!kernel.connection.serve(&mut kernel.store, &mut kernel.rings, |_| {}));
    assert_eq!(kernel.messages().len(), 2);
}

#[test]
fn a_request_that_is_too_long_is_skipped() {
    let mut kernel = Kernel::new();
    let long = vec![b'a'; PAYLOAD + 5000];
    assert_eq!(kernel.ask(kind::READ, 0, &long), error("E2BIG"));
    assert_eq!(kernel.ask(kind::READ, 0, b"domid\0"), Ok(b"1".to_vec()));
}

#[test]
fn what_makes_no_sense_has_an_answer() {
    let mut kernel = Kernel::new();
    for (request, payload, name) in [
        (0, &b"x\0"[..], "ENOSYS"),
        (99, b"", "ENOSYS"),
        (kind::READ, b"domid", "EINVAL"),
        (kind::READ, b"domid\0\0", "EINVAL"),
        (kind::READ, b"", "EINVAL"),
        (kind::READ, b"no//name\0", "EINVAL"),
        (kind::WRITE, b"name", "EINVAL"),
        (kind::MKDIR, b"name\0more", "EINVAL"),
        (kind::WATCH, b"name\0token", "EINVAL"),
        (kind::TRANSACTION_END, b"X\0", "EINVAL"),
        (kind::TRANSACTION_END, b"T\0", "ENOENT"),
        (kind::GET_DOMAIN_PATH, b"self\0", "EINVAL"),
    ] {
        assert_eq!(kernel.ask(request, 0, payload), error(name), "{request} {payload:?}");
    }
    assert_eq!(kernel.ask(kind::READ, 77, b"domid\0"), error("ENOENT"));
    assert_eq!(kernel.ask(kind::WRITE, 77, b"domid\0"), error("ENOENT"));
}

#[test]
fn a_full_store_says_so_and_lives() {
    let mut kernel = Kernel::new();
    let full = (0..100).find(|n| {
        let payload = [format!("n{n}\0").as_bytes(), &[7; 1000]].concat();
        kernel.ask(kind::WRITE, 0, &payload) == error("ENOSPC")
    });
    assert!(full.is_some());
    assert_eq!(kernel.ask(kind::READ, 0, b"domid\0"), Ok(b"1".to_vec()));
    kernel.store.publish(b"/local/domain/0/backend/x", b"z").unwrap();
    assert_eq!(kernel.ask(kind::RM, 0, b"n0\0"), ok());
    // A transaction that changes too much is over.
    let number = kernel.start();
    let path = format!("{}\0", "p".repeat(200));
    let over = (0..100).find(|_| kernel.ask(kind::WRITE, number, path.as_bytes()).is_err());
    assert!(over.is_some());
    assert_eq!(kernel.ask(kind::TRANSACTION_END, number, b"T\0"), error("ENOENT"));
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let path = "(/local/domain/[01]/)?[a-c/@]{0,8}";
    let sane = (path, prop::collection::vec(any::<u8>(), 0..30))
        .prop_map(|(path, rest)| [path.as_bytes(), b"\0", &rest].concat());
    let tokens = (path, "[a-z]{0,3}")
        .prop_map(|(path, token)| [path.as_bytes(), b"\0", token.as_bytes(), b"\0"].concat());
    let ends = prop::sample::select(vec![b"T\0".to_vec(), b"F\0".to_vec(), b"\0".to_vec()]);
    prop_oneof![4 => sane, 4 => tokens, 2 => ends, 1 => prop::collection::vec(any::<u8>(), 0..5000)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is asked: each request has one answer, the home alone changes, the store lives.
    #[test]
    fn each_request_has_an_answer(requests in prop::collection::vec((0..24u32, 0..4u32, payload()), 1..80)) {
        let mut kernel = Kernel::new();
        for (kind, transaction, payload) in requests {
            kernel.send(kind, transaction, &payload);
            let messages = kernel.messages();
            let answers = messages.iter().filter(|(kind, _)| *kind != kind::WATCH_EVENT);
            prop_assert_eq!(answers.count(), 1);
            prop_assert_eq!(kernel.store.value(b"/local/domain/0/backend/x"), Some(&b"y"[..]));
        }
        kernel.ask(kind::RESET_WATCHES, 0, b"\0").unwrap();
        prop_assert_eq!(kernel.ask(kind::WRITE, 0, b"last\0x"), ok());
    }

    /// Bytes in any pieces that are no requests at all.
    #[test]
    fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut kernel = Kernel::new();
        for piece in noise.chunks(7) {
            kernel.rings.requests.extend(piece);
            kernel.connection.serve(&mut kernel.store, &mut kernel.rings, |_| {});
            kernel.rings.answers.clear();
        }
        prop_assert_eq!(kernel.store.value(b"/local/domain/1/domid"), Some(&b"1"[..]));
    }
}
