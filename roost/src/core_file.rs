//! Writes a guest's memory and registers as an ELF core file (docs/diagnostics.md).
//! Input: numbers from L1, bytes of a guest.

use anyhow::{Context, Result, ensure};
use object::{
    LittleEndian as Little, U16, U32, U64,
    elf::{self, FileHeader64, Ident, NoteHeader64, NoteType, ProgramFlags, ProgramHeader64},
    pod::bytes_of,
};
use serde::Deserialize;
use std::{
    collections::HashMap,
    io::{Read, Seek, SeekFrom, Write},
};

const PAGE: u64 = 4096;
/// Where a stock kernel maps all memory.
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Where it maps itself: its physical base is here.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// How much of that there is at most.
const KERNEL_MAP_SIZE: u64 = 1 << 30;
/// The type of notes that have none.
const NO_TYPE: NoteType = NoteType(0);
/// A kernel's note about itself, with its header.
const MOST_VMCOREINFO: usize = 8192;
/// The start of that note, at the start of a page: lengths of name and text, type, name.
const VMCOREINFO_NAME: &[u8] = b"VMCOREINFO\0";
/// General registers as `NT_PRSTATUS` has them.
const PRSTATUS: [&str; 27] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs",
    "gs",
];
/// The same as the note `QEMU` has them.
const QEMU_GENERAL: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
];
/// Its segments: selectors and bases.
const QEMU_SEGMENTS: [(&str, &str); 10] = [
    ("cs", ""),
    ("ds", ""),
    ("es", ""),
    ("fs", "fs_base"),
    ("gs", "gs_base"),
    ("ss", ""),
    ("", ""),
    ("", ""),
    ("", ""),
    ("", ""),
];

/// What L1 says of a guest that has died.
#[derive(Clone, Debug, Deserialize)]
pub struct Description {
    /// Its number.
    pub guest: usize,
    /// Its name.
    pub name: String,
    /// It has a stock kernel.
    pub stock: bool,
    /// Its memory: guest-physical address, L1-physical address, bytes.
    pub ram: Vec<(u64, u64, u64)>,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
}

/// A vCPU.
#[derive(Clone, Debug, Deserialize)]
pub struct Vcpu {
    /// Its number.
    pub index: u32,
    /// Its registers by name.
    #[serde(flatten)]
    pub registers: HashMap<String, u64>,
}

impl Vcpu {
    /// A register; 0 if it has none of that name.
    fn get(&self, name: &str) -> u64 {
        self.registers.get(name).copied().unwrap_or_default()
    }
}

impl Description {
    /// Reads a line of L1's.
    ///
    /// # Errors
    /// It is none, or makes no sense.
    pub fn parse(json: &str) -> Result<Self> {
        let found: Self = serde_json::from_str(json).context("L1's description is damaged")?;
        let sound = |&(gpa, hpa, bytes): &(u64, u64, u64)| {
            let ends = [gpa, hpa].map(|at| at.checked_add(bytes));
            bytes > 0
                && (gpa | hpa | bytes).is_multiple_of(PAGE)
                && ends.iter().all(Option::is_some)
        };
        ensure!(found.ram.iter().all(sound), "L1's description of the memory makes no sense");
        Ok(found)
    }
}

/// Writes the core file of `core` to `out`, which is empty. `memory` reads all of its memory, in the
/// order of the description.
///
/// # Errors
/// Reading or writing fails.
pub fn write(
    core: &Description,
    out: &mut (impl Write + Seek),
    mut memory: impl Read,
) -> Result<()> {
    let notes = notes(core);
    let headers = size_of::<FileHeader64<Little>>()
        + (1 + 2 * core.ram.len()) * size_of::<ProgramHeader64<Little>>();
    let data = ((headers + notes.len() + MOST_VMCOREINFO) as u64).next_multiple_of(PAGE);
    let mut found = None;
    let bytes: u64 = core.ram.iter().map(|&(_, _, bytes)| bytes).sum();
    copy(&mut memory, bytes, data, out, &mut found)?;
    // Memory that ends with zeros was not written to its end.
    let end = data + bytes;
    if out.seek(SeekFrom::End(0))? < end {
        out.seek(SeekFrom::Start(end - 1))?;
        out.write_all(&[0])?;
    }

    let mut all = notes;
    if let Some(text) = &found {
        all.extend(note("VMCOREINFO", NO_TYPE, text.as_bytes()));
    }
    let segments = segments(core, headers as u64, all.len() as u64, data, found.as_deref());
    out.seek(SeekFrom::Start(0))?;
    out.write_all(bytes_of(&file_header(segments.len())))?;
    for segment in &segments {
        out.write_all(bytes_of(segment))?;
    }
    out.seek(SeekFrom::Start(headers as u64))?;
    out.write_all(&all)?;
    out.flush().context("cannot write")
}

/// Copies pages that are not zero, and looks for the kernel's note about itself.
fn copy(
    mut from: impl Read,
    bytes: u64,
    at: u64,
    out: &mut (impl Write + Seek),
    found: &mut Option<String>,
) -> Result<()> {
    let mut page = [0; PAGE as usize];
    let mut place = None;
    for number in 0..bytes / PAGE {
        from.read_exact(&mut page).context("QEMU gave less memory than asked for")?;
        if page.iter().all(|&byte| byte == 0) {
            continue;
        }
        if found.is_none() {
            *found = vmcoreinfo(&page);
        }
        let here = at + number * PAGE;
        if place != Some(here) {
            out.seek(SeekFrom::Start(here))?;
        }
        out.write_all(&page).context("cannot write")?;
        place = Some(here + PAGE);
    }
    Ok(())
}

/// The text of the note that a kernel keeps of itself for those who look at its memory, if `page`
/// begins with it.
fn vmcoreinfo(page: &[u8]) -> Option<String> {
    let word = |at: usize| Some(u32::from_le_bytes(page.get(at..at + 4)?.try_into().ok()?));
    let length = VMCOREINFO_NAME.len();
    if word(0)? as usize != length || word(8)? != 0 || &page[12..12 + length] != VMCOREINFO_NAME {
        return None;
    }
    let text = &page[12 + length.next_multiple_of(4)..];
    let text = &text[..text.len().min(word(4)? as usize)];
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    let text = std::str::from_utf8(&text[..end]).ok()?;
    text.starts_with("OSRELEASE=").then(|| text.to_owned())
}

/// `NUMBER(name)=` in such a text.
fn number(vmcoreinfo: &str, name: &str) -> Option<i64> {
    let prefix = format!("NUMBER({name})=");
    vmcoreinfo.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok())
}

fn file_header(segments: usize) -> FileHeader64<Little> {
    let e = Little;
    FileHeader64 {
        e_ident: Ident {
            magic: elf::ELFMAG,
            class: elf::ELFCLASS64,
            data: elf::ELFDATA2LSB,
            version: elf::EV_CURRENT,
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(e, elf::ET_CORE),
        e_machine: U16::new(e, elf::EM_X86_64),
        e_version: U32::new(e, u32::from(elf::EV_CURRENT.0)),
        e_entry: U64::new(e, 0),
        e_phoff: U64::new(e, size_of::<FileHeader64<Little>>() as u64),
        e_shoff: U64::new(e, 0),
        e_flags: U32::new(e, elf::FileFlags(0)),
        e_ehsize: U16::new(e, size_of::<FileHeader64<Little>>() as u16),
        e_phentsize: U16::new(e, size_of::<ProgramHeader64<Little>>() as u16),
        e_phnum: U16::new(e, segments as u16),
        e_shentsize: U16::new(e, 0),
        e_shnum: U16::new(e, 0),
        e_shstrndx: U16::new(e, elf::SymbolSection(0)),
    }
}

/// The notes, then memory where the kernel maps all of it, then what it maps as itself.
fn segments(
    core: &Description,
    notes_at: u64,
    notes_len: u64,
    data: u64,
    vmcoreinfo: Option<&str>,
) -> Vec<ProgramHeader64<Little>> {
    let e = Little;
    let segment = |kind, offset, vaddr, paddr, len| ProgramHeader64 {
        p_type: U32::new(e, kind),
        p_flags: U32::new(
            e,
            if kind == elf::PT_LOAD { elf::PF_R | elf::PF_W | elf::PF_X } else { ProgramFlags(0) },
        ),
        p_offset: U64::new(e, offset),
        p_vaddr: U64::new(e, vaddr),
        p_paddr: U64::new(e, paddr),
        p_filesz: U64::new(e, len),
        p_memsz: U64::new(e, if kind == elf::PT_LOAD { len } else { 0 }),
        p_align: U64::new(e, 0),
    };
    let mut all = vec![segment(elf::PT_NOTE, notes_at, 0, 0, notes_len)];
    let base = if core.stock { DIRECT_MAP } else { 0 };
    let mut offset = data;
    for &(gpa, _, bytes) in &core.ram {
        all.push(segment(elf::PT_LOAD, offset, base + gpa, gpa, bytes));
        offset += bytes;
    }
    let phys_base = vmcoreinfo.and_then(|text| number(text, "phys_base"));
    let Some(phys_base) = phys_base.filter(|_| core.stock) else { return all };
    // What of memory lies in the map: `phys_base` is negative for a kernel that lies below where it was
    // linked.
    let (start, end) =
        (phys_base.max(0) as u64, phys_base.saturating_add_unsigned(KERNEL_MAP_SIZE));
    offset = data;
    for &(gpa, _, bytes) in &core.ram {
        let (first, last) = (gpa.max(start), (gpa + bytes).min(end.max(0) as u64));
        if first < last {
            let vaddr = KERNEL_MAP.wrapping_add(first).wrapping_sub(phys_base as u64);
            all.push(segment(elf::PT_LOAD, offset + (first - gpa), vaddr, first, last - first));
        }
        offset += bytes;
    }
    all
}

/// The notes of all vCPUs.
fn notes(core: &Description) -> Vec<u8> {
    let mut all = Vec::new();
    for vcpu in &core.vcpus {
        all.extend(note("CORE", elf::NT_PRSTATUS, &prstatus(vcpu)));
    }
    for vcpu in &core.vcpus {
        all.extend(note("QEMU", NO_TYPE, &qemu_state(vcpu)));
    }
    all
}

fn note(name: &str, kind: NoteType, content: &[u8]) -> Vec<u8> {
    let e = Little;
    // The name's length counts its end.
    let lengths = [name.len() + 1, content.len()].map(|len| U32::new(e, len as u32));
    let header =
        NoteHeader64 { n_namesz: lengths[0], n_descsz: lengths[1], n_type: U32::new(e, kind) };
    let mut note = bytes_of(&header).to_vec();
    note.extend(name.as_bytes());
    note.resize((note.len() + 1).next_multiple_of(4), 0);
    note.extend(content);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// `struct elf_prstatus`: the vCPU's number, counted from 1, as a process id, and its registers.
fn prstatus(vcpu: &Vcpu) -> Vec<u8> {
    const PID: usize = 32;
    const REGISTERS: usize = 112;
    const SIZE: usize = 336;
    let mut status = vec![0; SIZE];
    status[PID..PID + 4].copy_from_slice(&(vcpu.index + 1).to_le_bytes());
    for (slot, name) in PRSTATUS.iter().enumerate() {
        let at = REGISTERS + 8 * slot;
        status[at..at + 8].copy_from_slice(&vcpu.get(name).to_le_bytes());
    }
    status
}

/// The state that QEMU's dumps hold: registers, ten segments, CR0 to CR4, the kernel's GS base.
fn qemu_state(vcpu: &Vcpu) -> Vec<u8> {
    let mut state = Vec::new();
    state.extend(1u32.to_le_bytes());
    state.extend(0u32.to_le_bytes());
    for name in QEMU_GENERAL {
        state.extend(vcpu.get(name).to_le_bytes());
    }
    for (selector, base) in QEMU_SEGMENTS {
        // Limit and flags are what they are for flat segments: not told.
        state.extend((vcpu.get(selector) as u32).to_le_bytes());
        state.extend([0; 12]);
        state.extend(vcpu.get(base).to_le_bytes());
    }
    for name in ["cr0", "cr1", "cr2", "cr3", "cr4", "kernel_gs_base"] {
        state.extend(vcpu.get(name).to_le_bytes());
    }
    let size = state.len() as u32;
    state[4..8].copy_from_slice(&size.to_le_bytes());
    state
}

#[cfg(test)]
mod tests;
