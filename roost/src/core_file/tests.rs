//! Core files, as a reader takes them apart.

use super::*;
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use std::io::Cursor;

const INFO: &str = "OSRELEASE=6.1\nNUMBER(phys_base)=4096\nX=1\n";

/// Two extents that L1 has in the other order; the second has a note of the kernel's.
fn sample() -> (Description, Vec<u8>) {
    let text = r#"{"guest":1,"name":"g","stock":true,"ram":[[0,16384,8192],[1048576,4096,8192]],
        "vcpus":[{"index":0,"rip":7,"rax":1,"cr3":20480},{"index":1,"rip":18446744073709551615}]}"#;
    let mut machine = vec![0u8; 24576];
    machine[16384 + 4096] = 9;
    machine[4096 + 4096 - 1] = 5;
    let note = note("VMCOREINFO", NO_TYPE, INFO.as_bytes());
    machine[4096..4096 + note.len()].copy_from_slice(&note);
    (Description::parse(text).unwrap(), machine)
}

fn written(core: &Description, machine: &[u8]) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let memory: Vec<u8> = core
        .ram
        .iter()
        .flat_map(|&(_, hpa, bytes)| &machine[hpa as usize..][..bytes as usize])
        .copied()
        .collect();
    write(core, &mut out, &*memory).unwrap();
    out.into_inner()
}

#[test]
fn memory_is_where_it_says() {
    let (core, machine) = sample();
    let file = written(&core, &machine);
    let header = FileHeader64::<Little>::parse(&*file).unwrap();
    assert_eq!(header.e_type(Little), elf::ET_CORE);
    let segments = header.program_headers(Little, &*file).unwrap();
    let loads: Vec<_> = segments
        .iter()
        .filter(|s| s.p_type(Little) == elf::PT_LOAD)
        .map(|s| (s.p_vaddr(Little), s.p_paddr(Little), s.data(Little, &*file).unwrap()))
        .collect();
    let (low, high) = (&machine[16384..24576], &machine[4096..12288]);
    let expected = [
        (DIRECT_MAP, 0, low),
        (DIRECT_MAP + 0x10_0000, 0x10_0000, high),
        (KERNEL_MAP, 0x1000, &low[4096..]),
        (KERNEL_MAP + 0xf_f000, 0x10_0000, high),
    ];
    assert_eq!(loads, expected);
}

#[test]
fn every_vcpu_has_its_notes_and_the_kernel_its_own() {
    let (core, machine) = sample();
    let file = written(&core, &machine);
    let header = FileHeader64::<Little>::parse(&*file).unwrap();
    let segments = header.program_headers(Little, &*file).unwrap();
    assert_eq!(segments[0].p_type(Little), elf::PT_NOTE, "it comes first");
    let mut notes = segments[0].notes(Little, &*file).unwrap().unwrap();
    let mut found = Vec::new();
    while let Some(note) = notes.next().unwrap() {
        let name = String::from_utf8(note.name().to_vec()).unwrap();
        found.push((name, note.n_type(Little).0, note.desc().to_vec()));
    }
    let names: Vec<_> = found.iter().map(|(name, kind, _)| (name.as_str(), *kind)).collect();
    let expected = [("CORE", 1), ("CORE", 1), ("QEMU", 0), ("QEMU", 0), ("VMCOREINFO", 0)];
    assert_eq!(names, expected);
    let word =
        |note: usize, at: usize| u64::from_le_bytes(found[note].2[at..at + 8].try_into().unwrap());
    assert_eq!((word(0, 112 + 8 * 16), word(0, 112 + 8 * 10)), (7, 1), "RIP and RAX");
    assert_eq!((word(0, 32), word(1, 32)), (1, 2), "process ids");
    assert_eq!(word(1, 112 + 8 * 16), u64::MAX);
    assert_eq!(found[0].2.len(), 336);
    assert_eq!((word(2, 0), found[2].2.len()), (440 << 32 | 1, 440), "version and size");
    assert_eq!((word(2, 8), word(2, 8 + 8 * 16)), (1, 7), "RAX and RIP");
    assert_eq!(word(2, 8 + 144 + 240 + 24), 20480, "CR3");
    assert_eq!(found[4].2, INFO.as_bytes());
}

#[test]
fn a_native_guest_is_mapped_as_it_lies() {
    let (mut core, machine) = sample();
    core.stock = false;
    let file = written(&core, &machine);
    let header = FileHeader64::<Little>::parse(&*file).unwrap();
    let segments = header.program_headers(Little, &*file).unwrap();
    let places: Vec<_> =
        segments[1..].iter().map(|s| (s.p_vaddr(Little), s.p_paddr(Little))).collect();
    assert_eq!(places, [(0, 0), (0x10_0000, 0x10_0000)]);
}

#[test]
fn descriptions_must_make_sense() {
    for ram in ["[[0,1,4096]]", "[[0,0,0]]", "[[18446744073709547520,0,8192]]", "[[0]]"] {
        let text = format!(r#"{{"guest":0,"name":"g","stock":true,"ram":{ram},"vcpus":[]}}"#);
        assert!(Description::parse(&text).is_err(), "{ram}");
    }
    assert!(vmcoreinfo(&[0; 4096]).is_none());
    assert_eq!(number(INFO, "phys_base"), Some(4096));
    assert_eq!(number("NUMBER(phys_base)=-8\n", "phys_base"), Some(-8));
}
