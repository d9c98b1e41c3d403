//! What can be learnt of a guest that has died, and of one that runs.

use object::{
    LittleEndian as Little,
    elf::{self, FileHeader64, ProgramHeader64},
    read::elf::{FileHeader, ProgramHeader},
};
use roost_tests::{built::Kernel, folder::Folder, run::Run};
use rustix::process::Signal;
use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// What makes a kernel panic.
const PANIC: &str = "echo c > /proc/sysrq-trigger\n";
/// Where a kernel maps itself.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

fn two_vcpus<'a>(folder: &'a Folder, initrd: &Path) -> Run<'a> {
    let run = folder.run(&Kernel::Cloud.file()).initrd(initrd).memory("256M");
    run.option("--vcpus", "2").option("--cpus", "2").append("console=hvc0 quiet")
}

/// A core file, read once more.
struct Core(Vec<u8>);

impl Core {
    fn segments(&self) -> &[ProgramHeader64<Little>] {
        let header = FileHeader64::<Little>::parse(&*self.0).expect("an ELF file");
        assert_eq!(header.e_type(Little), elf::ET_CORE);
        header.program_headers(Little, &*self.0).expect("segments")
    }

    /// Notes: name, type, content.
    fn notes(&self) -> Vec<(String, u32, Vec<u8>)> {
        let mut notes = self.segments()[0].notes(Little, &*self.0).unwrap().expect("notes");
        let mut found = Vec::new();
        while let Some(note) = notes.next().expect("sound notes") {
            let name = String::from_utf8_lossy(note.name()).into_owned();
            found.push((name, note.n_type(Little).0, note.desc().to_vec()));
        }
        found
    }

    /// Memory from the place on that `address` of a segment tells.
    fn memory(&self, at: u64, address: fn(&ProgramHeader64<Little>) -> u64) -> &[u8] {
        let here = self.segments()[1..].iter().find(|segment| {
            (address(segment)..address(segment) + segment.p_memsz(Little)).contains(&at)
        });
        let segment = here.unwrap_or_else(|| panic!("{at:#x} is in no segment"));
        &segment.data(Little, &*self.0).unwrap()[(at - address(segment)) as usize..]
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn a_panic_leaves_a_core_file_and_a_trace() {
    let folder = Folder::new();
    let initrd = folder.busybox();
    let run = two_vcpus(&folder, &initrd).option("--core", "guest.core").flag("--trace");
    let mut guest = run.piped();
    guest.expect_shell();
    let banner = guest.succeed("grep -w linux_banner /proc/kallsyms");
    let banner = u64::from_str_radix(banner.split_whitespace().next().unwrap(), 16).unwrap();
    guest.send(PANIC);
    let ended = guest.end();
    ended.assert_died("its kernel panicked");
    let err = &ended.said.err;
    assert!(err.contains("\nroost: the core file of guest 'vmlinuz' is guest.core\n"), "{err}");
    assert!(ended.log.contains("\n@core-end taken\n"), "{}", ended.log);

    let core = Core(fs::read(folder.path("guest.core")).unwrap());
    let notes = core.notes();
    let names: Vec<_> = notes.iter().map(|(name, kind, _)| (name.as_str(), *kind)).collect();
    let expected = [("CORE", 1), ("CORE", 1), ("QEMU", 0), ("QEMU", 0), ("VMCOREINFO", 0)];
    assert_eq!(names, expected);
    // The tool has told the registers of the vCPU that died, one of the two.
    let rips = notes[..2].iter().map(|(_, _, status)| word(status, 112 + 8 * 16));
    assert!(rips.into_iter().any(|rip| err.contains(&format!("rip {rip:#018x}"))), "{err}");
    let info = String::from_utf8(notes[4].2.clone()).unwrap();
    let release = Kernel::Cloud.release();
    assert!(info.starts_with(&format!("OSRELEASE={release}\n")), "{info}");
    let base = info.lines().find_map(|line| line.strip_prefix("NUMBER(phys_base)="));
    let base: u64 = base.expect("a base").parse().unwrap();

    let physical = core.memory(banner - KERNEL_MAP + base, |segment| segment.p_paddr(Little));
    let virtual_ = core.memory(banner, |segment| segment.p_vaddr(Little));
    let words = format!("Linux version {release} ");
    assert!(physical.starts_with(words.as_bytes()) && virtual_.starts_with(words.as_bytes()));
    assert_gdb_reads(&folder.path("guest.core"), banner, &words);

    let exits = exits(&ended.log);
    assert!(exits.iter().any(|(_, vcpu, _)| *vcpu == 1) && exits.len() > 64, "{}", ended.log);
    assert!(exits.is_sorted_by_key(|(at, ..)| *at), "by time");
    // What the guest died of is what nothing was made of. The other vCPU may have gone on for a while.
    let of_death: Vec<_> = exits.iter().filter(|(_, _, words)| words.contains(" - ")).collect();
    let [(_, dead, words)] = of_death[..] else { panic!("{of_death:?}") };
    assert!(words.contains(" syscall - rip=0x"), "{words}");
    assert!(exits.iter().rfind(|(_, vcpu, _)| vcpu == dead).is_some_and(|last| last.2 == *words));
}

/// gdb, where it is installed, finds the banner too.
fn assert_gdb_reads(core: &Path, banner: u64, words: &str) {
    let look = format!("x/s {banner:#x}");
    let mut gdb = Command::new("gdb");
    gdb.args(["-q", "-nx", "-batch", "-ex", "info threads", "-ex", &look, "-c"]).arg(core);
    let Ok(output) = gdb.output() else { return };
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("LWP 1") && out.contains("LWP 2") && out.contains(words), "{out}");
}

/// Lines of the trace: nanoseconds, vCPU, the rest.
fn exits(log: &str) -> Vec<(u64, u64, &str)> {
    let start = log.find("@trace begin 'vmlinuz': ").expect("a trace");
    let end = log.find("@trace end 'vmlinuz'").expect("its end");
    let lines = log[start..end].lines().skip(1).filter_map(|line| line.strip_prefix("@trace "));
    lines
        .map(|line| {
            let (time, rest) = line.split_once(" vcpu=").expect("a vCPU");
            let (vcpu, rest) = rest.split_once(' ').expect("more");
            (time.replace('.', "").parse().unwrap(), vcpu.parse().unwrap(), rest)
        })
        .collect()
}

#[test]
fn a_guest_that_is_well_leaves_a_trace_if_asked() {
    let folder = Folder::new();
    let initrd = folder.busybox();
    for (flag, told) in [("--trace=always", true), ("--trace", false)] {
        let run = two_vcpus(&folder, &initrd).flag(flag).option("--core", "guest.core");
        let mut guest = run.piped();
        guest.expect_shell();
        guest.send("poweroff\n");
        let ended = guest.end();
        assert_eq!(ended.said.status, 0, "{ended:?}");
        ended.assert_l1_is_sound();
        assert_eq!(ended.log.contains("@trace"), told, "{}", ended.log);
        assert_eq!(ended.said.err.contains("the last exits of 'vmlinuz'"), told, "{ended:?}");
        if told {
            assert!(exits(&ended.log).len() > 64, "{}", ended.log);
        }
        assert!(!folder.path("guest.core").exists(), "nobody has died");
    }
}

/// Without the tool nobody takes the memory; L1 goes on all the same.
#[test]
fn l1_does_not_wait_for_ever() {
    let folder = Folder::new();
    let initrd = folder.busybox();
    let mut guest = two_vcpus(&folder, &initrd).option("--core", "guest.core").piped();
    guest.expect_shell();
    let qemu = Path::new("/proc").join(guest.qemu().to_string()).join("exe");
    guest.signal(Signal::KILL);
    guest.send(PANIC);
    let end = Instant::now() + Duration::from_secs(90);
    while qemu.read_link().is_ok() {
        assert!(Instant::now() < end, "the machine still runs");
        thread::sleep(Duration::from_millis(100));
    }
    let log = fs::read_to_string(folder.path("l1.log")).unwrap();
    assert!(log.contains("\n@core-end late\n"), "{log}");
    assert!(!folder.path("guest.core").exists());
}

#[test]
fn counters_come_while_the_guest_runs_and_of_each_vcpu() {
    let folder = Folder::new();
    let initrd = folder.busybox();
    let mut guest = two_vcpus(&folder, &initrd).option("--stats-every", "1").piped();
    guest.expect_shell();
    guest.succeed("for i in 1 2 3; do sleep 1; done");
    guest.send("poweroff\n");
    let ended = guest.end();
    assert_eq!(ended.said.status, 0, "{ended:?}");
    ended.assert_l1_is_sound();
    for vcpu in 0..2 {
        let words = format!(": vmlinuz vCPU {vcpu}: ");
        let busy = |line: &&str| line.contains(&words) && line.contains(" exits/s: ");
        assert!(ended.said.err.lines().filter(busy).count() > 1, "{ended:?}");
    }

    let json = fs::read_to_string(folder.path("stats.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&json).unwrap();
    let guest = &all["guests"][0];
    let vcpus = guest["vcpus"].as_array().expect("vCPUs");
    assert_eq!(vcpus.len(), 2);
    let count = |of: &serde_json::Value, reason: &str| {
        of["exits"][reason]["count"].as_u64().unwrap_or_default()
    };
    for reason in guest["exits"].as_object().unwrap().keys() {
        let sum: u64 = vcpus.iter().map(|vcpu| count(vcpu, reason)).sum();
        assert_eq!(sum, count(guest, reason), "{reason}");
    }
    for (name, value) in guest["counters"].as_object().unwrap() {
        let sum: u64 = vcpus.iter().filter_map(|vcpu| vcpu["counters"][name].as_u64()).sum();
        assert_eq!(Some(sum), value.as_u64(), "{name}");
    }
    assert!(vcpus.iter().all(|vcpu| count(vcpu, "halt") > 0), "both have run");
}
