//! Reads the ELF header and program headers and checks what they ask for.
//! May: alloc. Context: boot. Input: guest-controlled.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use elf::abi::{EM_X86_64, ET_DYN, ET_EXEC, PF_W, PF_X, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::{ProgramHeader, SegmentTable};

/// Bytes of the ELF header.
pub const FILE_HEADER: usize = 64;
/// The program headers must lie within this many first bytes, so that they pass before what they
/// describe. Linkers put them right behind the ELF header.
pub const HEAD_LIMIT: u64 = 4096;
/// Most bytes of notes that are kept. Kernels have about 500.
pub const NOTES_LIMIT: u64 = 64 << 10;

const PROGRAM_HEADER: u64 = 56;
/// Where `e_ident` ends.
const IDENT: usize = 16;
/// Notes are read with an alignment of 4, as Xen does. GRUB says 8, and its notes are the same with
/// either; those of larger alignment are laid out differently.
const NOTE_ALIGN: u64 = 8;

/// A piece of the kernel (PT_LOAD).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it comes from, bytes in the file.
    pub file: Range<u64>,
    /// Where it goes, guest-physical. What the file does not give is zero.
    pub memory: Range<u64>,
    /// Where it is linked.
    pub vaddr: u64,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
}

/// What the headers ask for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Where the ELF header says that the program starts.
    pub entry: u64,
    /// In file order: sizes fit, all inside the allowed memory, none overlaps another.
    pub segments: Vec<Segment>,
    /// File ranges of notes; [`NOTES_LIMIT`] bytes at most.
    pub notes: Vec<Range<u64>>,
}

/// What is wrong with the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Not a little-endian ELF64 executable for x86-64.
    NotX86_64,
    /// Program headers have the wrong size or lie too far from the start.
    ProgramHeaders,
    /// There is nothing to load.
    NothingToLoad,
    /// A range in this program header wraps around, or its file part is larger than the whole.
    Size(usize),
    /// The segment of this program header does not fit the memory that there is.
    OutOfRange {
        /// Which program header.
        index: usize,
        /// First physical address.
        start: u64,
        /// Address past the last.
        end: u64,
    },
    /// This program header's segment overlaps an earlier one.
    Overlap(usize),
    /// There are more than [`NOTES_LIMIT`] bytes of notes.
    Notes,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotX86_64 => f.write_str("kernel is no ELF executable for x86-64: use another"),
            Self::ProgramHeaders => f.write_str(
                "kernel has misplaced program headers: it is damaged or not linked as a kernel",
            ),
            Self::NothingToLoad => {
                f.write_str("kernel has nothing to load: use vmlinux or vmlinuz, not an object")
            }
            Self::Size(index) => {
                write!(f, "kernel is damaged (program header {index} has impossible sizes)")
            }
            Self::OutOfRange { index, start, end } => write!(
                f,
                "kernel does not fit (program header {index} needs memory \
                 {start:#x}..{end:#x}): give the guest more"
            ),
            Self::Overlap(index) => {
                write!(f, "kernel is damaged (program header {index} overlaps an earlier one)")
            }
            Self::Notes => {
                write!(f, "kernel is damaged (more than {} KiB of notes)", NOTES_LIMIT >> 10)
            }
        }
    }
}

impl core::error::Error for HeaderError {}

/// How many first bytes of the file [`Headers::parse`] needs, told from the ELF header.
///
/// # Errors
/// [`HeaderError`] when the ELF header already forbids to go on.
pub fn head_len(first: &[u8; FILE_HEADER]) -> Result<usize, HeaderError> {
    let header = file_header(first)?;
    if header.e_phnum == 0 {
        return Err(HeaderError::NothingToLoad);
    }
    let table = u64::from(header.e_phnum) * PROGRAM_HEADER;
    match header.e_phoff.checked_add(table) {
        Some(end)
            if end <= HEAD_LIMIT
                && header.e_phoff >= FILE_HEADER as u64
                && u64::from(header.e_phentsize) == PROGRAM_HEADER =>
        {
            Ok(end as usize)
        }
        _ => Err(HeaderError::ProgramHeaders),
    }
}

fn file_header(first: &[u8; FILE_HEADER]) -> Result<FileHeader<LittleEndian>, HeaderError> {
    let (ident, tail) = first.split_at(IDENT);
    parse_ident(ident)
        .and_then(|ident| FileHeader::<LittleEndian>::parse_tail(ident, tail))
        .ok()
        .filter(|header| {
            header.class == Class::ELF64
                && header.e_machine == EM_X86_64
                && matches!(header.e_type, ET_EXEC | ET_DYN)
        })
        .ok_or(HeaderError::NotX86_64)
}

/// The lowest physical address that the ELF file `file` asks for; `None` if it is none to load.
#[must_use]
pub fn lowest(file: &[u8]) -> Option<u64> {
    let first = file.first_chunk()?;
    let table = file.get(file_header(first).ok()?.e_phoff as usize..head_len(first).ok()?)?;
    SegmentTable::new(LittleEndian, Class::ELF64, table)
        .iter()
        .filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0)
        .map(|header| header.p_paddr)
        .min()
}

impl Headers {
    /// Reads the headers in `head`, the file's first [`head_len`] bytes, for a kernel that may use
    /// the physical addresses `allowed`.
    ///
    /// # Errors
    /// [`HeaderError`] says what is wrong.
    pub fn parse(head: &[u8], allowed: &Range<u64>) -> Result<Self, HeaderError> {
        let first = head.first_chunk().ok_or(HeaderError::NotX86_64)?;
        let file = file_header(first)?;
        let table =
            head.get(file.e_phoff as usize..head_len(first)?).ok_or(HeaderError::ProgramHeaders)?;
        let mut headers = Self { entry: file.e_entry, segments: Vec::new(), notes: Vec::new() };
        let table = SegmentTable::new(LittleEndian, Class::ELF64, table);
        for (index, header) in table.iter().enumerate() {
            match header.p_type {
                PT_LOAD if header.p_memsz > 0 => headers.add_segment(index, &header, allowed)?,
                PT_NOTE if header.p_align <= NOTE_ALIGN => headers.add_note(index, &header)?,
                _ => {}
            }
        }
        if headers.segments.is_empty() { Err(HeaderError::NothingToLoad) } else { Ok(headers) }
    }

    fn add_segment(
        &mut self,
        index: usize,
        header: &ProgramHeader,
        allowed: &Range<u64>,
    ) -> Result<(), HeaderError> {
        // The offset of nothing may lie past the end of the file.
        let offset = if header.p_filesz == 0 { 0 } else { header.p_offset };
        let file = range(offset, header.p_filesz).ok_or(HeaderError::Size(index))?;
        let memory = range(header.p_paddr, header.p_memsz).ok_or(HeaderError::Size(index))?;
        if header.p_filesz > header.p_memsz {
            return Err(HeaderError::Size(index));
        }
        if memory.start < allowed.start || memory.end > allowed.end {
            return Err(HeaderError::OutOfRange { index, start: memory.start, end: memory.end });
        }
        let overlaps =
            |other: &Segment| memory.start < other.memory.end && other.memory.start < memory.end;
        if self.segments.iter().any(overlaps) {
            return Err(HeaderError::Overlap(index));
        }
        self.segments.push(Segment {
            file,
            memory,
            vaddr: header.p_vaddr,
            write: header.p_flags & PF_W != 0,
            execute: header.p_flags & PF_X != 0,
        });
        Ok(())
    }

    fn add_note(&mut self, index: usize, header: &ProgramHeader) -> Result<(), HeaderError> {
        let file = range(header.p_offset, header.p_filesz).ok_or(HeaderError::Size(index))?;
        let before: u64 = self.notes.iter().map(|note| note.end - note.start).sum();
        // Neither is larger than the limit when it is added.
        if header.p_filesz > NOTES_LIMIT || before + header.p_filesz > NOTES_LIMIT {
            return Err(HeaderError::Notes);
        }
        self.notes.push(file);
        Ok(())
    }
}

fn range(start: u64, len: u64) -> Option<Range<u64>> {
    Some(start..start.checked_add(len)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::{Elf, Load};

    const RAM: Range<u64> = 0x1000..0x10_0000;

    fn parse(elf: &Elf) -> Result<Headers, HeaderError> {
        let file = elf.build();
        let len = head_len(file.first_chunk().unwrap())?;
        Headers::parse(&file[..len], &RAM)
    }

    fn load(paddr: u64, file: usize, memory: u64) -> Load {
        Load { paddr, vaddr: 0, data: vec![1; file], memory, flags: 5 }
    }

    #[test]
    fn segments_keep_their_physical_place() {
        let elf = Elf {
            loads: vec![load(0x2000, 16, 32), Load { vaddr: 7, flags: 6, ..load(0x1000, 8, 8) }],
            notes: vec![0; 12],
        };
        let headers = parse(&elf).unwrap();
        let [first, second] = &headers.segments[..] else { panic!("{headers:?}") };
        assert_eq!(first.memory, 0x2000..0x2020);
        assert_eq!(first.file.end - first.file.start, 16);
        assert!(first.execute && !first.write);
        assert_eq!((second.memory.clone(), second.vaddr), (0x1000..0x1008, 7));
        assert!(second.write && !second.execute);
        assert_eq!(headers.notes.len(), 1);
    }

    #[test]
    fn segments_must_fit_memory() {
        let out = |start: u64, end: u64| Err(HeaderError::OutOfRange { index: 0, start, end });
        let one = |segment| parse(&Elf { loads: vec![segment], notes: vec![] });
        assert!(one(load(0x1000, 1, 0xff000)).is_ok(), "all there is");
        assert_eq!(one(load(0xfff, 1, 1)), out(0xfff, 0x1000));
        assert_eq!(one(load(0x1000, 1, 0xff001)), out(0x1000, 0x10_0001));
        assert_eq!(one(load(u64::MAX, 1, 1)), Err(HeaderError::Size(0)), "wraps around");
        assert_eq!(one(load(0x1000, 2, 1)), Err(HeaderError::Size(0)), "file larger than memory");
    }

    #[test]
    fn segments_must_not_overlap() {
        let two = |a, b| parse(&Elf { loads: vec![a, b], notes: vec![] });
        assert!(two(load(0x2000, 1, 0x10), load(0x2010, 1, 0x10)).is_ok(), "neighbours");
        let overlap = Err(HeaderError::Overlap(1));
        assert_eq!(two(load(0x2000, 1, 0x11), load(0x2010, 1, 0x10)), overlap);
        assert_eq!(two(load(0x2000, 1, 0x10), load(0x1000, 1, 0x1001)), overlap);
        assert_eq!(two(load(0x2000, 1, 0x10), load(0x2004, 1, 1)), overlap, "inside");
    }

    #[test]
    fn a_segment_of_zeros_needs_no_file() {
        let mut file = Elf { loads: vec![load(0x1000, 0, 16)], notes: vec![] }.build();
        // p_offset of the first program header, far past the end.
        file[FILE_HEADER + 8 + 5] = 1;
        let headers = Headers::parse(&file[..head_len(file.first_chunk().unwrap()).unwrap()], &RAM);
        let segment = &headers.unwrap().segments[0];
        assert_eq!((segment.file.clone(), segment.memory.clone()), (0..0, 0x1000..0x1010));
    }

    #[test]
    fn empty_files_are_refused() {
        assert_eq!(
            parse(&Elf { loads: vec![load(0x1000, 0, 0)], notes: vec![] }),
            Err(HeaderError::NothingToLoad)
        );
    }

    #[test]
    fn notes_are_bounded() {
        let with =
            |len: usize| parse(&Elf { loads: vec![load(0x1000, 1, 1)], notes: vec![0; len] });
        assert!(with(NOTES_LIMIT as usize).is_ok());
        assert_eq!(with(NOTES_LIMIT as usize + 1), Err(HeaderError::Notes));
    }

    #[test]
    fn foreign_headers_are_refused() {
        let file = Elf { loads: vec![load(0x1000, 1, 1)], notes: vec![] }.build();
        let change = |at: usize, value: u8| {
            let mut file = file.clone();
            file[at] = value;
            head_len(file.first_chunk().unwrap()).map(|_| ())
        };
        assert_eq!(change(0, 0x7f), Ok(()), "unchanged");
        for (at, what) in [(0, "magic"), (4, "class"), (5, "byte order"), (16, "type"), (18, "CPU")]
        {
            assert_eq!(change(at, 0x55), Err(HeaderError::NotX86_64), "{what}");
        }
        for (at, what) in [(32, "offset"), (39, "offset"), (54, "entry size"), (57, "count")] {
            assert_eq!(change(at, 0x15), Err(HeaderError::ProgramHeaders), "{what}");
        }
    }
}
