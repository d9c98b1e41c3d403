//! `roost run --config`: what a file says is what runs, and every wrong file is refused with one line.

mod support;

use pv_abi::bundle::{Backend, Bundle, ConsoleMode, Kind, Restart, exit};
use std::fs;
use support::{Bench, Said, end};

const GUEST: &str = "[[guest]]\nname = \"a\"\nkernel = \"kernel\"\nmemory = \"64M\"\n";

/// A bench with `text` as the configuration.
fn bench(text: &str) -> Bench {
    let bench = Bench::with_l1(&end(exit::POWEROFF));
    bench.file("vms.toml", text.as_bytes());
    bench
}

fn run(bench: &Bench, args: &[&str]) -> Said {
    Said::by(&mut bench.roost(&[&["run", "--config", "vms.toml"], args].concat()))
}

/// A file of `text` must be refused with a line that has all of `words`.
fn refused(text: &str, words: &[&str]) {
    refused_with(text, &[], words);
}

fn refused_with(text: &str, args: &[&str], words: &[&str]) {
    let said = run(&bench(text), args);
    assert_eq!(said.status, 2, "{said:?}");
    for word in words {
        assert!(said.line().contains(word), "`{word}` is not in: {}", said.err);
    }
    assert!(said.line().starts_with("roost: "));
    assert!(said.line().contains("vms.toml"), "{said:?}");
}

/// What L1 is told by a run with `args`.
fn told(bench: &Bench, args: &[&str]) -> Bundle {
    let said = run(bench, &[&["--pack", "module"], args].concat());
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");
    Bundle::decode(&fs::read(bench.path("module")).unwrap()).unwrap()
}

#[test]
fn every_key_arrives() {
    let bench = bench(
        "stats = \"table\"\nconsole = \"focus\"\n\
         [[guest]]\nname = \"web 1\"\nkernel = \"kernel\"\ninitrd = \"rd\"\nappend = \"quiet\"\n\
         memory = \"128M\"\nvcpus = 4\nweight = 250\nrestart = \"on-failure\"\n\
         backend = \"shadow\"\n\
         [[guest]]\nname = \"b\"\nkernel = \"kernel\"\nmemory = 65\nrestart = \"always\"\n\
         [[guest]]\nname = \"c\"\nkernel = \"kernel\"\n\
         [[guest]]\nname = \"d\"\nkernel = \"kernel\"\nrestart = \"on-reboot\"\n",
    );
    bench.file("rd", b"ramdisk");
    let bundle = told(&bench, &[]);
    assert!(bundle.stats);
    assert_eq!(bundle.console, ConsoleMode::Focus);
    let [web, b, c, d] = &bundle.guests[..] else { panic!("four guests") };
    assert_eq!((web.name.as_str(), web.cmdline.as_str()), ("web 1", "quiet"));
    assert_eq!((web.memory, web.vcpus, web.weight), (128 << 20, 4, 250));
    assert_eq!((web.restart, web.backend), (Restart::OnFailure, Backend::Shadow));
    let Kind::Stock { initrd: Some(initrd), .. } = &web.kind else { panic!("a ramdisk") };
    assert_eq!(initrd.len, 7);
    assert_eq!((b.memory, b.restart), (65 << 20, Restart::Always));
    assert_eq!((c.memory, c.vcpus, c.weight), (512 << 20, 1, 100));
    assert_eq!((c.restart, c.backend, c.cmdline.as_str()), (Restart::Never, Backend::Auto, ""));
    assert_eq!(d.restart, Restart::OnReboot);
}

#[test]
fn the_machine_is_as_the_file_says() {
    let machine = "machine-memory = \"200M\"\ncpus = 2\naccel = \"tcg\"\ncpu = \"EPYC-v3\"\n\
                   machine = \"pc\"\nicount = false\n";
    let said = run(&bench(&format!("{machine}{GUEST}")), &["--verbose"]);
    assert!(said.err.contains("memory 200 MiB = guest 64 MiB + L1 136 MiB"), "{said:?}");
    let words = "-M pc -accel tcg -cpu EPYC-v3 -smp 2 -m 200 ";
    assert!(said.err.contains(words), "{said:?}");
}

#[test]
fn memory_is_the_sum_of_the_guests_and_what_l1_needs() {
    let second = GUEST.replace("\"a\"", "\"b\"");
    let said = run(&bench(&format!("accel = \"tcg\"\n{GUEST}{second}")), &["--verbose"]);
    assert_eq!(said.status, 0, "{said:?}");
    let words = "memory 181 MiB = guest 64 MiB + guest 64 MiB + L1 53 MiB";
    assert!(said.err.contains(words), "{said:?}");
}

#[test]
fn options_say_what_the_file_leaves_open() {
    let args = ["--cpus", "3", "--accel", "tcg", "--console", "prefix", "--stats=json:s"];
    let said = run(&bench(GUEST), &[&["--verbose"], &args[..]].concat());
    assert!(said.err.contains("-accel tcg -cpu max -smp 3 "), "{said:?}");
    assert_eq!(told(&bench(GUEST), &args).console, ConsoleMode::Prefix);
}

#[test]
fn the_console_suits_the_guests_number() {
    let second = GUEST.replace("\"a\"", "\"b\"");
    assert_eq!(told(&bench(GUEST), &[]).console, ConsoleMode::Focus);
    assert_eq!(told(&bench(&format!("{GUEST}{second}")), &[]).console, ConsoleMode::Prefix);
}

#[test]
fn paths_are_relative_to_the_file() {
    let bench = bench("");
    fs::create_dir(bench.path("sub")).unwrap();
    bench.file("sub/vms.toml", format!("{GUEST}initrd = \"../rd\"\n").as_bytes());
    bench.file("sub/kernel", &[0x90; 8192]);
    bench.file("rd", b"ramdisk");
    let said = Said::by(&mut bench.roost(&["run", "--config", "sub/vms.toml", "--pack", "module"]));
    assert_eq!(said.status, 0, "{said:?}");
    let bundle = Bundle::decode(&fs::read(bench.path("module")).unwrap()).unwrap();
    let Kind::Stock { kernel, .. } = &bundle.guests[0].kind else { panic!("stock") };
    assert_eq!(kernel.len, 8192);
}

#[test]
fn files_that_are_none() {
    let bench = bench("");
    let config = |path: &str| Said::by(&mut bench.roost(&["run", "--config", path]));
    let none = config("none.toml");
    assert_eq!(none.status, 2);
    assert!(none.line().contains("configuration none.toml"), "{none:?}");
    assert!(config(".").line().contains("is a directory"));
    assert!(config("vms.toml").line().contains("is empty"));
    bench.file("vms.toml", b"\xff\xfe");
    assert!(config("vms.toml").line().contains("is not text in UTF-8"));
    let nothing = Said::by(&mut bench.roost(&["run"]));
    assert_eq!(nothing.status, 2);
    assert!(nothing.err.contains("--kernel <FILE>"), "{nothing:?}");
}

#[test]
fn text_that_is_no_toml() {
    refused("guest = [\n", &["line "]);
    refused("cpus 2\n", &["line 1: "]);
    refused(&format!("{GUEST}name = \"b\"\n"), &["line 5 (name): ", "duplicate key"]);
    refused("[guest]\nname = \"a\"\n", &["line 1: ", "expected [[guest]] tables"]);
}

#[test]
fn keys() {
    refused(&format!("{GUEST}memroy = \"1G\"\n"), &["line 5 (memroy): ", "`memroy`", "`memory`"]);
    refused(&format!("cpu-count = 2\n{GUEST}"), &["line 1 (cpu-count): ", "`cpu-count`", "`cpus`"]);
    refused(&format!("{GUEST}cpus = 2\n"), &["line 5 (cpus): ", "`cpus`", "`vcpus`"]);
    refused("[[guest]]\nname = \"a\"\n", &["line 1: ", "missing field `kernel`"]);
    refused("[[guest]]\nkernel = \"kernel\"\n", &["line 1: ", "missing field `name`"]);
    refused("cpus = 1\n", &["has no guest", "[[guest]]"]);
}

#[test]
fn values() {
    for (line, words) in [
        ("vcpus = 0", ["0 is out of range", "1 to 32"]),
        ("vcpus = 33", ["33 is out of range", "1 to 32"]),
        ("vcpus = -1", ["-1 is out of range", "1 to 32"]),
        ("vcpus = \"two\"", ["string \"two\"", "a whole number"]),
        ("weight = 0", ["0 is out of range", "1 to 1000"]),
        ("weight = 1001", ["1001 is out of range", "1 to 1000"]),
        ("restart = \"sometimes\"", ["`sometimes`", "`on-failure`"]),
        ("backend = \"xen\"", ["`xen`", "`assisted`"]),
        ("append = 1", ["integer `1`", "expected a string"]),
    ] {
        let key = format!("line 5 ({}): ", line.split_once(' ').unwrap().0);
        refused(&format!("{GUEST}{line}\n"), &[&[key.as_str()], &words[..]].concat());
    }
    for (line, words) in [
        ("cpus = 0", ["0 is out of range", "1 to 64"]),
        ("cpus = 65", ["65 is out of range", "1 to 64"]),
        ("accel = \"xen\"", ["`xen`", "`kvm`"]),
        ("console = \"both\"", ["`both`", "`prefix`"]),
        ("stats = \"csv\"", ["table", "json:FILE"]),
        ("icount = 1", ["integer `1`", "boolean"]),
        ("machine-memory = \"much\"", ["512M or 2G", "write a size"]),
        ("machine-memory = true", ["boolean `true`", "512M"]),
    ] {
        let key = format!("line 1 ({}): ", line.split_once(' ').unwrap().0);
        refused(&format!("{line}\n{GUEST}"), &[&[key.as_str()], &words[..]].concat());
    }
    let small = GUEST.replace("64M", "63M");
    refused(&small, &["guest 'a'", "`memory` 63 MiB is too small", "at least 64 MiB"]);
    let bad = GUEST.replace("64M", "1.5G");
    refused(&bad, &["line 4 (memory): ", "512M or 2G"]);
    refused(&GUEST.replace("64M", "900000G"), &["`memory`", "too much", "this machine has"]);
    refused(
        &format!("machine-memory = \"100M\"\naccel = \"tcg\"\n{GUEST}"),
        &["`machine-memory` 100 MiB is too small", "\"115M\""],
    );
    let long = format!("{GUEST}append = \"{}\"\n", "x".repeat(1024));
    refused(&long, &["guest 'a'", "`append`", "at most 1023"]);
}

#[test]
fn contradictions() {
    refused(&format!("cpus = 2\nicount = true\n{GUEST}"), &["`cpus` 2", "`icount`", "drop one"]);
    refused(&format!("accel = \"kvm\"\nicount = true\n{GUEST}"), &["icount", "kvm"]);
}

#[test]
fn names() {
    let second = GUEST.replace("kernel\"\n", "kernel\"\n\n");
    refused(&format!("{GUEST}{second}"), &["line 6: ", "'a'", "that of line 2"]);
    for name in ["", "tab\\t", "quote\\\"", "back\\\\slash", "é", &"x".repeat(33)] {
        let text = GUEST.replace("\"a\"", &format!("\"{name}\""));
        refused(&text, &["line 2 (name): ", "1 to 32 printable ASCII", "choose another"]);
    }
    let longest = "x".repeat(32);
    let text = GUEST.replace("\"a\"", &format!("\"{longest}\""));
    assert_eq!(told(&bench(&text), &[]).guests[0].name, longest);
}

#[test]
fn files_of_guests() {
    let none = GUEST.replace("\"kernel\"", "\"none\"");
    refused(&none, &["guest 'a'", "kernel none", "No such file"]);
    let none = format!("{GUEST}initrd = \"/nowhere/rd\"\n");
    refused(&none, &["guest 'a'", "initrd /nowhere/rd", "No such file"]);
    let second = GUEST.replace("\"a\"", "\"b\"").replace("\"kernel\"", "\"vms.toml\"");
    let text = format!("#!not a kernel\n{GUEST}{second}");
    refused(&text, &["guest 'b'", "kernel vms.toml is a script"]);
}

#[test]
fn options_that_the_file_decides() {
    for option in ["kernel", "initrd", "append", "memory", "vcpus", "restart", "backend"] {
        let value = match option {
            "vcpus" => "1",
            "memory" => "64M",
            "backend" => "auto",
            "restart" => "never",
            _ => "x",
        };
        let words = [&format!("--{option} "), "--config", "[[guest]]"];
        refused_with(GUEST, &[&format!("--{option}"), value], &words);
    }
    for (line, args) in [
        ("cpus = 2", &["--cpus", "2"][..]),
        ("accel = \"tcg\"", &["--accel", "tcg"]),
        ("cpu = \"max\"", &["--cpu", "max"]),
        ("icount = false", &["--icount"]),
        ("machine = \"q35\"", &["--machine", "q35"]),
        ("stats = \"table\"", &["--stats"]),
        ("console = \"focus\"", &["--console", "focus"]),
    ] {
        let words = ["line 2 sets", &format!("drop {} or", args[0])];
        refused_with(&format!("\n{line}\n{GUEST}"), args, &words);
    }
}

/// The keys in the first column of the table below `heading`.
fn documented(heading: &str) -> Vec<String> {
    let text = include_str!("../../docs/running.md");
    let section = text.split(heading).nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned()).collect()
}

#[test]
fn the_documentation_has_every_key_and_no_other() {
    // Beside the tables of keys, one for all.
    let machine = [documented("## Keys of the machine"), vec!["guest".into()]].concat();
    for (text, keys) in [
        (format!("unknown = 1\n{GUEST}"), machine),
        (format!("{GUEST}unknown = 1\n"), documented("## Keys of a guest")),
    ] {
        let said = run(&bench(&text), &[]);
        let expected = said.line().split("expected one of ").nth(1).unwrap();
        let mut expected: Vec<_> = expected.split(", ").map(|key| key.trim_matches('`')).collect();
        let mut keys: Vec<_> = keys.iter().map(String::as_str).collect();
        expected.sort_unstable();
        keys.sort_unstable();
        assert_eq!(keys, expected);
    }
}

#[test]
fn the_documented_examples_are_configurations() {
    let texts = [include_str!("../../docs/running.md"), include_str!("../../README.md")];
    for text in texts {
        let example = text.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
        let bench = bench(&example.unwrap().replace("\"kvm\"", "\"tcg\""));
        for file in ["vmlinuz", "web.cpio", "db.cpio", "batch.cpio"] {
            bench.file(file, &[0x90; 4096]);
        }
        assert_eq!(told(&bench, &[]).guests.len(), 2);
    }
}
