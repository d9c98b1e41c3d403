//! Places the bytes of an ELF file in memory as they stream past.
//! May: alloc. Context: boot. Input: guest-controlled.

use super::headers::{FILE_HEADER, HeaderError, Headers, Segment, head_len};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Where a kernel goes.
pub trait Destination {
    /// Why a write failed.
    type Error;

    /// Stores `bytes` at guest-physical `paddr`.
    ///
    /// # Errors
    /// The destination's own.
    fn write(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Stores `len` zeros at guest-physical `paddr`.
    ///
    /// # Errors
    /// The destination's own.
    fn zero(&mut self, paddr: u64, len: u64) -> Result<(), Self::Error>;
}

/// Why a kernel did not load. `E` is the destination's own error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError<E> {
    /// The headers ask for something impossible.
    Header(HeaderError),
    /// The file ends before its segments do.
    Truncated {
        /// Bytes the headers promise.
        needed: u64,
        /// Bytes there were.
        len: u64,
    },
    /// The destination failed.
    Destination(E),
}

impl<E> From<HeaderError> for ElfError<E> {
    fn from(error: HeaderError) -> Self {
        Self::Header(error)
    }
}

impl<E: fmt::Display> fmt::Display for ElfError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(error) => error.fmt(f),
            Self::Truncated { needed, len } => {
                write!(f, "kernel is cut short: {len} of {needed} bytes; copy it again")
            }
            Self::Destination(error) => error.fmt(f),
        }
    }
}

impl<E: core::error::Error> core::error::Error for ElfError<E> {}

/// A kernel in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Where the ELF header says that the kernel starts.
    pub entry: u64,
    /// From the lowest to past the highest guest-physical address used.
    pub memory: Range<u64>,
    /// What lies where.
    pub segments: Vec<Segment>,
    /// All notes, one after the other (`Elf64_Nhdr`, aligned to 4 bytes).
    pub notes: Vec<u8>,
}

impl Loaded {
    /// The kernel's text: what may be executed and not written.
    #[must_use]
    pub fn text(&self) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.execute && !segment.write)
    }
}

/// Places segments in a [`Destination`]. Feed it the file from its first byte on, then finish.
#[derive(Debug)]
pub struct Loader<D> {
    destination: D,
    allowed: Range<u64>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Collects the headers.
    Head(Vec<u8>),
    /// Places what they describe.
    Body { headers: Headers, notes: Vec<u8>, position: u64 },
}

impl<D: Destination> Loader<D> {
    /// A loader that stores only to guest-physical addresses in `allowed`.
    pub fn new(destination: D, allowed: Range<u64>) -> Self {
        Self { destination, allowed, stage: Stage::Head(Vec::new()) }
    }

    /// Takes the next bytes of the file, any number of them.
    ///
    /// # Errors
    /// The first [`ElfError`]; the loader is of no use after it.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ElfError<D::Error>> {
        let mut rest = bytes;
        while let Stage::Head(head) = &mut self.stage {
            // The ELF header tells how much more the head needs.
            let needed = head.first_chunk().map_or(Ok(FILE_HEADER), head_len)?;
            let (taken, tail) = rest.split_at(rest.len().min(needed - head.len()));
            head.extend_from_slice(taken);
            rest = tail;
            if head.len() < needed {
                return Ok(());
            }
            if head.len() > FILE_HEADER {
                let head = core::mem::take(head);
                self.start_body(&head)?;
            }
        }
        self.place(rest)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`ElfError::Truncated`] if something is missing, or the destination's error.
    pub fn finish(mut self) -> Result<Loaded, ElfError<D::Error>> {
        let (headers, notes, position) = match self.stage {
            Stage::Head(head) => {
                let needed = head.first_chunk().map_or(Ok(FILE_HEADER), head_len)? as u64;
                return Err(ElfError::Truncated { needed, len: head.len() as u64 });
            }
            Stage::Body { headers, notes, position } => (headers, notes, position),
        };
        let Headers { entry, segments, notes: note_files } = headers;
        let files = segments.iter().map(|segment| &segment.file).chain(&note_files);
        let needed = files.map(|file| file.end).max().unwrap_or(0);
        if position < needed {
            return Err(ElfError::Truncated { needed, len: position });
        }
        for segment in &segments {
            let filled = segment.memory.start + (segment.file.end - segment.file.start);
            if filled < segment.memory.end {
                self.destination
                    .zero(filled, segment.memory.end - filled)
                    .map_err(ElfError::Destination)?;
            }
        }
        let start = segments.iter().map(|segment| segment.memory.start).min().unwrap_or(0);
        let end = segments.iter().map(|segment| segment.memory.end).max().unwrap_or(0);
        Ok(Loaded { entry, memory: start..end, segments, notes })
    }

    /// Goes on to placing bytes, the head being the first of them.
    fn start_body(&mut self, head: &[u8]) -> Result<(), ElfError<D::Error>> {
        let headers = Headers::parse(head, &self.allowed)?;
        let notes = headers.notes.iter().map(note_len).sum();
        self.stage = Stage::Body { headers, notes: vec![0; notes], position: 0 };
        self.place(head)
    }

    /// Places `bytes`, which follow those placed before.
    fn place(&mut self, bytes: &[u8]) -> Result<(), ElfError<D::Error>> {
        let Stage::Body { headers, notes, position } = &mut self.stage else { return Ok(()) };
        let start = *position;
        *position += bytes.len() as u64;
        for segment in &headers.segments {
            let (offset, part) = overlap(&segment.file, start, bytes);
            if !part.is_empty() {
                self.destination
                    .write(segment.memory.start + offset, part)
                    .map_err(ElfError::Destination)?;
            }
        }
        let mut notes = &mut notes[..];
        for file in &headers.notes {
            let (offset, part) = overlap(file, start, bytes);
            let (note, rest) = notes.split_at_mut(note_len(file));
            note[offset as usize..][..part.len()].copy_from_slice(part);
            notes = rest;
        }
        Ok(())
    }
}

/// Bytes kept for the notes in `file`, a whole number of words so that others can follow.
fn note_len(file: &Range<u64>) -> usize {
    (file.end - file.start).next_multiple_of(4) as usize
}

/// The part of `bytes`, which lie at `start` in the file, that belongs to `file`, and how far from
/// the beginning of `file` it lies.
fn overlap<'b>(file: &Range<u64>, start: u64, bytes: &'b [u8]) -> (u64, &'b [u8]) {
    let end = start + bytes.len() as u64;
    let (from, to) = (file.start.max(start), file.end.min(end));
    if from >= to {
        return (0, &[]);
    }
    (from - file.start, &bytes[(from - start) as usize..(to - start) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::{Elf, Load, Memory};

    const RAM: Range<u64> = 0x1000..0x4000;

    fn elf() -> Elf {
        let data = |first: u8, len: u8| (first..first + len).collect();
        Elf {
            loads: vec![
                Load { paddr: 0x2000, vaddr: 0x2000, data: data(1, 50), memory: 80, flags: 5 },
                Load { paddr: 0x1010, vaddr: 0, data: data(100, 20), memory: 20, flags: 6 },
            ],
            notes: vec![9; 13],
        }
    }

    fn load(file: &[u8], piece: usize) -> Result<(Loaded, Memory), ElfError<()>> {
        let mut memory = Memory::new(RAM, 0xee);
        let mut loader = Loader::new(&mut memory, RAM);
        for bytes in file.chunks(piece) {
            loader.feed(bytes)?;
        }
        loader.finish().map(|loaded| (loaded, memory))
    }

    #[test]
    fn pieces_of_any_size_load_the_same() {
        let file = elf().build();
        for piece in [1, 7, 63, 64, 65, 200, file.len()] {
            let (loaded, memory) = load(&file, piece).unwrap();
            assert_eq!(loaded.memory, 0x1010..0x2050);
            assert_eq!(loaded.text().unwrap().memory, 0x2000..0x2050);
            assert_eq!(loaded.notes, [&[9; 13][..], &[0; 3]].concat(), "whole words");
            assert_eq!(memory.at(0x2000, 50), elf().loads[0].data, "in pieces of {piece}");
            assert_eq!(memory.at(0x2032, 30), [0; 30], "the rest is zero");
            assert_eq!(memory.at(0x1010, 20), elf().loads[1].data);
            let touched = memory.at(0x1000, 0x3000).iter().filter(|&&byte| byte != 0xee).count();
            assert_eq!(touched, 80 + 20, "nothing else is touched");
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let file = elf().build();
        for len in 0..file.len() {
            match load(&file[..len], 100) {
                Err(ElfError::Truncated { needed, len: got }) => {
                    assert!(got == len as u64 && needed > got);
                }
                Err(error) => panic!("{len}: {error:?}"),
                Ok(_) => panic!("{len}: loaded"),
            }
        }
    }

    #[test]
    fn destination_errors_come_back() {
        struct Full;
        impl Destination for Full {
            type Error = &'static str;
            fn write(&mut self, _: u64, _: &[u8]) -> Result<(), Self::Error> {
                Err("full")
            }
            fn zero(&mut self, _: u64, _: u64) -> Result<(), Self::Error> {
                Ok(())
            }
        }
        let result = Loader::new(Full, RAM).feed(&elf().build());
        assert_eq!(result, Err(ElfError::Destination("full")));
    }
}
