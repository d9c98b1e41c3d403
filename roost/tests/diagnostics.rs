//! `--core`, `--trace` and `--stats=live`, with a few instructions in the place of L1.

mod support;

use object::{
    LittleEndian as Little,
    elf::{self, FileHeader64},
    read::elf::{FileHeader, ProgramHeader},
};
use pv_abi::bundle::{Bundle, Trace, exit};
use std::fs;
use support::{Bench, LOG, Said, end, say, take_one};

/// An L1 whose guest dies: its memory is where L1 itself is. It goes on when it has been taken.
fn dying() -> Bench {
    let words = "@report guest 'g' died\n@core {\"guest\":0,\"name\":\"g\",\"stock\":false,\
                 \"ram\":[[2097152,1048576,8192]],\"vcpus\":[{\"index\":0,\"rip\":4660}]}\n";
    Bench::with_l1(&[&say(LOG, words)[..], &take_one(LOG), &end(exit::GUEST_DIED)].concat())
}

#[test]
fn memory_of_a_dead_guest_is_taken() {
    let bench = dying();
    bench.file("dead.core", b"what was there before");
    let said = bench.run(&["--core", "dead.core", "--timeout", "60", "--l1-log", "log"]);
    assert_eq!(said.status, 3, "{said:?}");
    let words = "roost: guest 'g' died\nroost: the core file of guest 'g' is dead.core\n";
    assert!(said.err.starts_with(words), "{said:?}");
    let file = fs::read(bench.path("dead.core")).unwrap();
    let header = FileHeader64::<Little>::parse(&*file).unwrap();
    let segments = header.program_headers(Little, &*file).unwrap();
    let [notes, memory] = segments else { panic!("{} segments", segments.len()) };
    assert_eq!(notes.p_type(Little), elf::PT_NOTE);
    assert_eq!((memory.p_paddr(Little), memory.p_memsz(Little)), (2 << 20, 8192));
    // QEMU has put the stand-in there.
    let image = fs::read(bench.path("l1")).unwrap();
    assert_eq!(memory.data(Little, &*file).unwrap()[..image.len().min(8192)], image[..]);
    assert!(bench.left_behind().is_empty());
}

#[test]
fn without_a_core_file_nobody_comes() {
    let said = dying().run(&["--timeout", "1", "--l1-log", "log"]);
    assert_eq!(said.status, 124, "{said:?}");
    assert!(!said.err.contains("core file"), "{said:?}");
}

#[test]
fn a_core_file_that_cannot_be_written_is_told_first() {
    let bench = Bench::with_l1(&end(exit::POWEROFF));
    let refused = |args: &[&str], words: &[&str]| {
        let said = bench.run(args);
        assert_eq!(said.status, 2, "{said:?}");
        for word in words {
            assert!(said.err.lines().next().unwrap().contains(word), "no `{word}`: {said:?}");
        }
    };
    refused(&["--core", "/nowhere/core"], &["--core /nowhere/core cannot be written"]);
    refused(&["--core", "."], &["--core . is not a regular file"]);
    refused(&["--core", "c", "--backend", "assisted"], &["--core c", "that L0 runs", "--backend"]);
    refused(&["--core", "c", "--pack", "p"], &["--core", "--pack", "cannot be used"]);
    let said = bench.run(&["--core", "c"]);
    assert_eq!((said.status, said.err.as_str()), (0, ""), "nobody has died");
    assert!(!bench.path("c").exists());
}

const GUEST: &str = "[[guest]]\nname = \"a\"\nkernel = \"kernel\"\nmemory = \"64M\"\n";

fn config(text: &str, args: &[&str]) -> (Bench, Said) {
    let bench = Bench::with_l1(&end(exit::POWEROFF));
    bench.file("vms.toml", text.as_bytes());
    let said = Said::by(&mut bench.roost(&[&["run", "--config", "vms.toml"], args].concat()));
    (bench, said)
}

#[test]
fn keys_of_a_configuration() {
    let text = format!("trace = \"always\"\nstats-every = 5\n{GUEST}");
    let (bench, said) = config(&text, &["--pack", "module"]);
    assert_eq!(said.status, 0, "{said:?}");
    let bundle = Bundle::decode(&fs::read(bench.path("module")).unwrap()).unwrap();
    assert_eq!((bundle.trace, bundle.stats_every, bundle.stats), (Trace::Always, 5, false));

    let second = GUEST.replace("\"a\"", "\"b\"");
    for (text, args, words) in [
        (
            format!("trace = 1\n{GUEST}"),
            &[][..],
            &["line 1 (trace)", "true, false or \"always\""][..],
        ),
        (format!("stats-every = 0\n{GUEST}"), &[], &["line 1 (stats-every)", "1 to 3600"]),
        (format!("trace = true\n{GUEST}"), &["--trace"], &["line 1 sets `trace`", "drop --trace"]),
        (
            format!("{GUEST}core = \"/nowhere/c\"\n"),
            &[],
            &["guest 'a'", "`core` /nowhere/c cannot"],
        ),
        (GUEST.into(), &["--core", "c"], &["--core cannot be used with --config"]),
        (format!("{GUEST}core = \"c\"\n"), &["--pack", "p"], &["guest 'a'", "--pack"]),
        (
            format!("{GUEST}core = \"c\"\n{second}core = \"c\"\n"),
            &[],
            &["`core` c", "guest 'b' too"],
        ),
    ] {
        let (_, said) = config(&text, args);
        assert_eq!(said.status, 2, "{said:?}");
        for word in words {
            assert!(said.line().contains(word), "no `{word}`: {said:?}");
        }
    }
}

#[test]
fn counters_are_shown_while_guests_run() {
    let words = "@stats-live {\"ms\":1000,\"guests\":[{\"name\":\"g\",\"vcpus\":[{\"halt\":7}]}]}\n\
                 @stats {\"guests\":[]}\n";
    let bench = Bench::with_l1(&[say(LOG, words), end(exit::POWEROFF)].concat());
    let said = bench.run(&["--stats=live"]);
    assert_eq!(said.status, 0, "{said:?}");
    assert_eq!(said.line(), "roost: 1.0 s: g vCPU 0: 7 exits/s: halt 7");
    let quiet = bench.run(&["--stats"]);
    assert_eq!((quiet.status, quiet.err.as_str()), (0, ""));
}

#[test]
fn a_trace_is_kept_and_named() {
    let words = "@trace begin 'g': 0 exits\n@trace end 'g'\n";
    let bench = Bench::with_l1(&[say(LOG, words), end(exit::POWEROFF)].concat());
    let said = bench.run(&["--trace=always"]);
    assert_eq!(said.status, 0, "{said:?}");
    let lines: Vec<_> = said.err.lines().collect();
    let [trace, log] = lines[..] else { panic!("{said:?}") };
    assert_eq!(trace, "roost: the last exits of 'g' are the lines with @trace of L1's log");
    let log = log.strip_prefix("roost: L1's log is in ").unwrap();
    assert_eq!(fs::read_to_string(log).unwrap(), words);
}
