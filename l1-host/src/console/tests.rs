//! The multiplexer, with a port that only remembers.

use super::{Action, Console, GuestId, Mux, backlog::CAPACITY, screen::Port};
use proptest::prelude::*;
use pv_abi::bundle::ConsoleMode::{self, Focus, Prefix};
use std::{
    format,
    string::{String, ToString},
    sync::{Arc, Mutex},
    thread,
    vec::Vec,
};

/// A port that remembers what it was sent.
#[derive(Debug, Default)]
struct Paper(Mutex<Vec<u8>>);

impl Port for &Paper {
    fn send(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

impl Paper {
    /// What was sent since the last call.
    fn text(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

struct Bench<'a> {
    paper: &'a Paper,
    mux: Mux<&'a Paper>,
    consoles: Vec<Arc<Console>>,
}

impl<'a> Bench<'a> {
    fn new(paper: &'a Paper, mode: ConsoleMode, names: &[&str]) -> Self {
        let mux = Mux::new(paper);
        mux.set_mode(mode);
        let add = |name: &&str| {
            let console = Arc::<Console>::default();
            let id = mux.add(name, console.clone());
            assert_eq!(console.guest(), Some(id));
            console
        };
        let consoles = names.iter().map(add).collect();
        Self { paper, mux, consoles }
    }

    fn write(&self, guest: usize, text: &str) {
        self.mux.write(GuestId(guest), text.as_bytes());
    }

    /// What is shown when the user types `keys`; they ask L1 for nothing.
    fn shown_by(&self, keys: &[u8]) -> String {
        self.paper.text();
        assert!(self.mux.input(keys).is_empty());
        self.paper.text()
    }

    /// Input that waits for a guest.
    fn waiting(&self, guest: usize) -> String {
        let mut buffer = [0; 64];
        let count = self.consoles[guest].take(&mut buffer);
        String::from_utf8(buffer[..count].into()).unwrap()
    }
}

#[test]
fn a_single_guest_has_it_for_itself() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Focus, &["only"]);
    bench.write(0, "a\x1b[2Jb");
    assert_eq!(bench.shown_by(b"\x1dl\x1d\x1d"), "");
    assert_eq!(bench.waiting(0), "\x1dl\x1d\x1d");
    bench.mux.ended(GuestId(0), "powered off");
    bench.mux.finish();
    assert_eq!(bench.paper.text(), "");
}

#[test]
fn the_focus_decides_who_is_seen_and_who_hears() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Focus, &["a", "b"]);
    bench.write(0, "from a");
    bench.write(1, "from b\r\n");
    assert_eq!(paper.text(), "from a");
    assert_eq!(bench.shown_by(b"x\x1d2y"), "\r\n[roost: console of 'b' (2 of 2)]\r\nfrom b\r\n");
    assert_eq!((bench.waiting(0), bench.waiting(1)), ("x".into(), "y".into()));
    bench.write(0, "more");
    bench.write(1, "$ ");
    assert_eq!(paper.text(), "$ ");
    assert_eq!(bench.shown_by(b"\x1dn"), "\r\n[roost: console of 'a' (1 of 2)]\r\nmore");
    assert_eq!(bench.shown_by(b"\x1d1"), "\r\n[roost: console of 'a' (1 of 2)]\r\n");
}

#[test]
fn commands_may_come_in_pieces() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Focus, &["a", "b"]);
    assert_eq!(bench.shown_by(b"\x1d"), "");
    assert!(bench.shown_by(b"2").contains("console of 'b'"));
    assert_eq!(bench.shown_by(b"\x1d\x1d\x1d]"), "");
    assert_eq!(bench.waiting(1), "\x1d\x1d");
}

#[test]
fn the_list_tells_state_focus_and_what_waits() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Focus, &["a", "b", "c"]);
    bench.write(1, "12345");
    bench.mux.ended(GuestId(2), "powered off");
    assert_eq!(paper.text(), "[roost: 'c' powered off]\r\n");
    assert_eq!(
        bench.shown_by(b"\x1dl"),
        "[roost: 1 'a' running, has the focus]\r\n\
         [roost: 2 'b' running, 5 bytes wait]\r\n\
         [roost: 3 'c' ended]\r\n"
    );
}

#[test]
fn keys_that_mean_nothing_are_answered() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Focus, &["a", "b"]);
    let none = "[roost: there is no guest 3; Ctrl-] l lists all 2]\r\n";
    assert_eq!(bench.shown_by(b"\x1d3"), none);
    assert_eq!(bench.shown_by(b"\x1dz"), "[roost: Ctrl-] ? shows the keys]\r\n");
    let help = bench.shown_by(b"\x1d?");
    assert!(help.contains("l: list") && help.matches('\n').count() == 1, "{help}");
    assert_eq!(bench.waiting(0), "");
}

#[test]
fn a_guest_is_stopped_by_the_caller() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Focus, &["a", "b"]);
    let stop = [Action::Stop(GuestId(1))];
    assert_eq!(bench.mux.input(b"\x1d2\x1dq\x1dq")[..], stop, "asked for once");
    assert!(paper.text().ends_with("[roost: 'b' is being stopped]\r\n"));
    bench.mux.ended(GuestId(1), "was stopped");
    assert_eq!(
        bench.shown_by(b"\x1d2\x1dq").lines().last(),
        Some("[roost: 'b' has ended already]")
    );
}

#[test]
fn the_focus_leaves_a_guest_that_ends() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Focus, &["a", "b", "c"]);
    bench.write(2, "c waits\r\n");
    bench.mux.ended(GuestId(1), "died");
    paper.text();
    bench.write(0, "bye");
    bench.mux.ended(GuestId(0), "powered off");
    assert_eq!(
        paper.text(),
        "bye\r\n[roost: 'a' powered off]\r\n[roost: console of 'c' (3 of 3)]\r\nc waits\r\n"
    );
    bench.mux.ended(GuestId(2), "powered off");
    assert_eq!(paper.text(), "[roost: 'c' powered off]\r\n", "nobody is left");
}

#[test]
fn a_guest_that_starts_again_keeps_its_place() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Focus, &["a", "b"]);
    let again = Arc::<Console>::default();
    bench.mux.restarted(GuestId(0), "died", again.clone());
    assert_eq!(paper.text(), "[roost: 'a' died and starts again]\r\n");
    assert_eq!(again.guest(), Some(GuestId(0)));
    assert!(bench.mux.input(b"x").is_empty());
    assert_eq!(again.take(&mut [0; 2]), 1);
    bench.write(0, "up");
    assert_eq!(paper.text(), "up");
}

#[test]
fn what_nobody_has_seen_is_shown_in_the_end() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Focus, &["a", "b", "c"]);
    bench.write(0, "a");
    bench.write(2, "c");
    bench.mux.finish();
    assert_eq!(paper.text(), "a\r\n[roost: console of 'c' (3 of 3)]\r\nc");
}

#[test]
fn what_is_lost_is_told() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Focus, &["a", "b"]);
    for n in 0..3000 {
        bench.write(1, &format!("line {n}\n"));
    }
    let shown = bench.shown_by(b"\x1d2");
    let mut lines = shown.lines();
    assert_eq!(lines.next(), Some("[roost: console of 'b' (2 of 2)]"));
    let lost = lines.next().unwrap();
    assert!(lost.starts_with("[roost: ") && lost.ends_with(" bytes before this are lost]"));
    assert!(lines.next().unwrap().starts_with("line "), "a whole line");
    assert_eq!(lines.last(), Some("line 2999"));
    assert!(shown.len() < CAPACITY + 200);
}

#[test]
fn lines_carry_names() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Prefix, &["a", "b"]);
    bench.write(0, "hel");
    bench.write(1, "one\ntwo");
    bench.write(0, "lo\r\n");
    assert_eq!(paper.text(), "b| one\r\na| hello\r\n");
    bench.mux.ended(GuestId(1), "died");
    assert_eq!(paper.text(), "b| two\r\n[roost: 'b' died]\r\n");
    bench.write(0, "$ ");
    bench.mux.finish();
    assert_eq!(paper.text(), "a| $ \r\n");
}

#[test]
fn input_has_a_focus_among_lines_too() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Prefix, &["a", "b"]);
    assert_eq!(bench.shown_by(b"1\x1d22"), "[roost: input goes to 'b' (2 of 2)]\r\n");
    assert_eq!((bench.waiting(0), bench.waiting(1)), ("1".into(), "2".into()));
    bench.mux.ended(GuestId(1), "died");
    assert_eq!(bench.shown_by(b"3"), "");
    assert_eq!(bench.waiting(0), "3");
}

#[test]
fn a_single_guest_with_lines() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Prefix, &["a"]);
    bench.write(0, "x");
    bench.mux.ended(GuestId(0), "powered off");
    assert_eq!(paper.text(), "a| x\r\n[roost: 'a' powered off]\r\n");
}

#[test]
fn a_guest_that_is_not_there_has_no_console() {
    let paper = Paper::default();
    let bench = Bench::new(&paper, Focus, &["a"]);
    bench.write(1, "x");
    bench.mux.ended(GuestId(1), "x");
    assert_eq!(paper.text(), "");
}

/// How often the focus moves, at least.
const SWITCHES: usize = 200;

/// What is shown while a CPU for each of three guests writes `texts` of it, and another switches
/// about.
fn crowd(mode: ConsoleMode, texts: impl Fn(usize) -> Vec<String>) -> String {
    let paper = Paper::default();
    let bench = Bench::new(&paper, mode, &["a", "b", "c"]);
    thread::scope(|scope| {
        let write = |guest, texts: Vec<String>| {
            let mux = &bench.mux;
            move || texts.iter().for_each(|text| mux.write(GuestId(guest), text.as_bytes()))
        };
        let writers = [0, 1, 2].map(|guest| scope.spawn(write(guest, texts(guest))));
        let mut switches = 0;
        while switches < SWITCHES || writers.iter().any(|writer| !writer.is_finished()) {
            assert!(bench.mux.input(b"\x1dn").is_empty());
            switches += 1;
        }
    });
    bench.mux.finish();
    paper.text()
}

#[test]
fn lines_of_many_cpus_stay_whole() {
    let line = |guest, n| format!("guest {guest} line {n}");
    let shown = crowd(Prefix, |guest| {
        let halves = |n: usize| {
            let text = line(guest, n) + "\r\n";
            let (first, second) = text.split_at(n % text.len());
            [first.to_string(), second.to_string()]
        };
        (0..300).flat_map(halves).collect()
    });
    for (guest, name) in ["a", "b", "c"].iter().enumerate() {
        let prefix = format!("{name}| ");
        let lines: Vec<_> = shown.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
        let expected: Vec<_> = (0..300).map(|n| line(guest, n)).collect();
        assert_eq!(lines, expected);
    }
    let others = shown.lines().filter(|line| line.starts_with("[roost: input goes to '")).count();
    assert!(others >= SWITCHES);
    assert_eq!(shown.lines().count(), 900 + others);
}

#[test]
fn a_guest_is_seen_only_below_its_announcement() {
    let names = ['a', 'b', 'c'];
    let shown = crowd(Focus, |guest| (0..20_000).map(|_| names[guest].to_string()).collect());
    let (mut guest, mut switches) = ('a', 0);
    for line in shown.lines().filter(|line| !line.ends_with(" are lost]")) {
        if let Some(rest) = line.strip_prefix("[roost: console of '") {
            guest = rest.chars().next().unwrap();
            switches += 1;
        } else {
            assert!(line.chars().all(|c| c == guest), "below {guest}: {line}");
        }
    }
    assert!(switches >= SWITCHES);
}

/// Something that happens to the multiplexer.
#[derive(Clone, Debug)]
enum Event {
    Write(usize, String),
    Type(Vec<u8>),
    End(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..3usize, "[ab\r\n\x1b]{0,80}").prop_map(|(guest, text)| Event::Write(guest, text)),
        prop::collection::vec(
            prop_oneof![Just(0x1d), prop::sample::select(&b"ln123q?]x"[..])],
            0..6
        )
        .prop_map(Event::Type),
        (0..3usize).prop_map(Event::End),
    ]
}

proptest! {
    /// In focus mode every byte of every guest is shown once, in order, after its guest's
    /// announcement; what is typed goes to one guest.
    #[test]
    fn nothing_is_lost_or_mixed_up(events in prop::collection::vec(event(), 0..60)) {
        let paper = Paper::default();
        let bench = Bench::new(&paper, Focus, &["a", "b", "c"]);
        let mut written = [const { String::new() }; 3];
        for event in events {
            match event {
                Event::Write(guest, text) => {
                    bench.write(guest, &text);
                    written[guest].push_str(&text);
                }
                Event::Type(keys) => {
                    for Action::Stop(guest) in bench.mux.input(&keys) {
                        bench.mux.ended(guest, "was stopped");
                    }
                }
                Event::End(guest) => bench.mux.ended(GuestId(guest), "ended"),
            }
        }
        bench.mux.finish();
        let (mut shown, mut guest) = ([const { String::new() }; 3], 0);
        for line in paper.text().split_inclusive('\n') {
            match line.strip_prefix("[roost: ") {
                Some(words) => {
                    if let Some(name) = words.strip_prefix("console of '") {
                        guest = usize::from(name.as_bytes()[0] - b'a');
                    }
                }
                None => shown[guest].push_str(line),
            }
        }
        // Without the line ends that L1 may add.
        let bare = |text: &String| text.replace(['\r', '\n'], "").to_string();
        prop_assert_eq!(shown.each_ref().map(bare), written.each_ref().map(bare));
    }
}
