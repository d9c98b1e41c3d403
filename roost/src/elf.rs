//! Cuts ELF images of ours into the page-aligned pieces that L1 copies.
//! May: nothing. Input: a file the user named; any bytes.

use anyhow::{Result, anyhow, bail, ensure};
use object::{
    LittleEndian,
    elf::{EM_X86_64, ET_EXEC, FileHeader64, NoteType, PF_W, PF_X, PT_LOAD, ProgramHeader64},
    read::elf::{FileHeader, ProgramHeader},
};
use pv_abi::{
    PAGE_SIZE,
    elf_note::{ABI_VERSION, NAME},
};

const PAGE: u64 = PAGE_SIZE as u64;

/// A program ready to be packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// First instruction.
    pub entry: u64,
    /// Pieces in ascending order, no page in two of them.
    pub pieces: Vec<Piece>,
}

/// A page-aligned piece of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it starts: a multiple of the page size.
    pub addr: u64,
    /// Bytes in memory, at least as many as `bytes` holds; the rest is zero.
    pub memory: u64,
    /// What the file gives.
    pub bytes: Vec<u8>,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
}

/// Which of a segment's two addresses says where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// `p_vaddr`: the shim, at its place in the VM window.
    Virtual,
    /// `p_paddr`: a native guest, in guest memory.
    Physical,
}

/// A parsed x86-64 ELF file.
#[derive(Debug)]
pub struct Elf<'a> {
    data: &'a [u8],
    header: &'a FileHeader64<LittleEndian>,
    segments: &'a [ProgramHeader64<LittleEndian>],
}

impl<'a> Elf<'a> {
    /// Reads the headers; the file must be a 64-bit x86 one.
    ///
    /// # Errors
    /// Says what kind of file it is instead.
    pub fn parse(data: &'a [u8]) -> Result<Self> {
        ensure!(data.get(4) != Some(&1), "is a 32-bit ELF file; x86-64 is needed");
        let header = FileHeader64::<LittleEndian>::parse(data)
            .map_err(|_| anyhow!("is an ELF file for another machine, or damaged"))?;
        let machine = header.e_machine.get(LittleEndian);
        ensure!(machine == EM_X86_64, "is an ELF file for another machine; x86-64 is needed");
        let segments = header
            .program_headers(LittleEndian, data)
            .map_err(|_| anyhow!("is a damaged ELF file: its program headers lie outside it"))?;
        ensure!(!segments.is_empty(), "is an ELF file without program headers, not an image");
        Ok(Self { data, header, segments })
    }

    /// Version in the native-ABI note; `None` for a program without one.
    ///
    /// # Errors
    /// Says that the notes are damaged.
    pub fn native_abi(&self) -> Result<Option<u32>> {
        let damaged = || anyhow!("is a damaged ELF file: its notes cannot be read");
        for segment in self.segments {
            let notes = segment.notes(LittleEndian, self.data).map_err(|_| damaged())?;
            let Some(mut notes) = notes else { continue };
            while let Some(note) = notes.next().map_err(|_| damaged())? {
                let kind = note.n_type(LittleEndian);
                if note.name() == NAME.as_bytes() && kind == NoteType(ABI_VERSION) {
                    let version = note.desc().first_chunk().ok_or_else(damaged)?;
                    return Ok(Some(u32::from_le_bytes(*version)));
                }
            }
        }
        Ok(None)
    }

    /// True if an interpreter is asked for: a dynamically linked program.
    #[must_use]
    pub fn is_dynamic(&self) -> bool {
        self.segments
            .iter()
            .any(|segment| segment.p_type.get(LittleEndian) == object::elf::PT_INTERP)
    }

    /// The program, cut into pieces.
    ///
    /// # Errors
    /// Says why the file cannot be loaded at fixed addresses.
    pub fn program(&self, by: Address) -> Result<Program> {
        ensure!(
            self.header.e_type.get(LittleEndian) == ET_EXEC,
            "is no executable with fixed addresses: link it with --no-pie"
        );
        let mut pieces = self
            .segments
            .iter()
            .filter(|segment| segment.p_type.get(LittleEndian) == PT_LOAD)
            .filter(|segment| segment.p_memsz.get(LittleEndian) > 0)
            .map(|segment| self.piece(segment, by))
            .collect::<Result<Vec<_>>>()?;
        ensure!(!pieces.is_empty(), "has no segment to load");
        pieces.sort_by_key(|piece| piece.addr);
        for pair in pieces.windows(2) {
            let [low, high] = pair else { continue };
            if (low.addr + low.memory).div_ceil(PAGE) > high.addr / PAGE {
                bail!("has segments that share the page at {:#x}: align them to 4 KiB", high.addr);
            }
        }
        Ok(Program { entry: self.header.e_entry.get(LittleEndian), pieces })
    }

    fn piece(&self, segment: &ProgramHeader64<LittleEndian>, by: Address) -> Result<Piece> {
        let start = match by {
            Address::Virtual => segment.p_vaddr.get(LittleEndian),
            Address::Physical => segment.p_paddr.get(LittleEndian),
        };
        let content = segment
            .data(LittleEndian, self.data)
            .map_err(|()| anyhow!("is cut short: a segment lies past its end"))?;
        let (addr, pad) = (start / PAGE * PAGE, start % PAGE);
        let memory = segment
            .p_memsz
            .get(LittleEndian)
            .checked_add(pad)
            .filter(|memory| addr.checked_add(*memory).is_some_and(|end| end <= u64::MAX - PAGE))
            .ok_or_else(|| anyhow!("has a segment past the end of the address space"))?;
        let mut bytes = vec![0; if content.is_empty() { 0 } else { start as usize % PAGE_SIZE }];
        bytes.extend_from_slice(content);
        ensure!(
            bytes.len() as u64 <= memory,
            "has a segment that is larger in the file than in memory"
        );
        let flags = segment.p_flags.get(LittleEndian);
        Ok(Piece {
            addr,
            memory,
            bytes,
            write: flags.contains(PF_W),
            execute: flags.contains(PF_X),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_elf::{Sample, segment};
    use object::elf::{EM_AARCH64, ET_DYN, ProgramFlags};

    const NONE: ProgramFlags = ProgramFlags(0);

    fn program(sample: &Sample, by: Address) -> Result<Program> {
        Elf::parse(&sample.build())?.program(by)
    }

    #[test]
    fn segments_become_aligned_pieces_in_order() {
        let sample = Sample {
            entry: 0x40_0123,
            segments: vec![
                segment(PF_W, 0x40_2010, 0x10_2010, b"data", 0x3000),
                segment(PF_X, 0x40_0000, 0x10_0000, b"code", 4),
            ],
            ..Sample::default()
        };
        let made = program(&sample, Address::Virtual).unwrap();
        assert_eq!(made.entry, 0x40_0123);
        let mut data = vec![0; 0x10];
        data.extend_from_slice(b"data");
        let pieces = vec![
            Piece {
                addr: 0x40_0000,
                memory: 4,
                bytes: b"code".into(),
                write: false,
                execute: true,
            },
            Piece { addr: 0x40_2000, memory: 0x3010, bytes: data, write: true, execute: false },
        ];
        assert_eq!(made.pieces, pieces);
        let physical = program(&sample, Address::Physical).unwrap();
        let at: Vec<u64> = physical.pieces.iter().map(|piece| piece.addr).collect();
        assert_eq!(at, [0x10_0000, 0x10_2000]);
    }

    #[test]
    fn a_segment_of_zeros_has_no_bytes() {
        let sample =
            Sample { segments: vec![segment(PF_W, 0x40_0010, 0, b"", 8)], ..Sample::default() };
        let made = program(&sample, Address::Virtual).unwrap();
        assert_eq!((made.pieces[0].bytes.len(), made.pieces[0].memory), (0, 0x18));
    }

    #[test]
    fn what_cannot_be_loaded_is_named() {
        let reason = |sample: &Sample| program(sample, Address::Virtual).unwrap_err().to_string();
        let sharing = Sample {
            segments: vec![segment(NONE, 0x1000, 0, b"a", 1), segment(NONE, 0x1800, 0, b"b", 1)],
            ..Sample::default()
        };
        assert!(reason(&sharing).contains("share the page at 0x1000"));
        let shrunk = Sample { segments: vec![segment(NONE, 0, 0, b"abc", 2)], ..Sample::default() };
        assert!(reason(&shrunk).contains("larger in the file"));
        let high = Sample {
            segments: vec![segment(NONE, u64::MAX - 4095, 0, b"a", 1)],
            ..Sample::default()
        };
        assert!(reason(&high).contains("address space"));
        let pie = Sample { elf_type: ET_DYN, ..Sample::default() };
        assert!(reason(&pie).contains("--no-pie"));
        let none = Sample { note: Some((b"Roost", 1, 1)), segments: vec![], ..Sample::default() };
        assert!(reason(&none).contains("no segment"));
    }

    #[test]
    fn other_machines_and_damage_are_named() {
        let reason = |data: &[u8]| Elf::parse(data).unwrap_err().to_string();
        let arm = Sample { machine: EM_AARCH64, ..Sample::default() }.build();
        assert!(reason(&arm).contains("another machine"));
        let mut narrow = Sample::default().build();
        narrow[4] = 1;
        assert!(reason(&narrow).contains("32-bit"));
        let whole = Sample::default().build();
        assert!(reason(&whole[..20]).contains("damaged"));
        assert!(reason(&whole[..70]).contains("program headers"));
        let cut = Elf::parse(&whole[..whole.len() - 1]).unwrap().program(Address::Virtual);
        assert!(cut.unwrap_err().to_string().contains("cut short"));
    }

    #[test]
    fn the_native_note_is_found() {
        let abi = |note| {
            let data = Sample { note, ..Sample::default() }.build();
            Elf::parse(&data).unwrap().native_abi().unwrap()
        };
        assert_eq!(abi(Some((b"Roost", 1, 0x1_0000))), Some(0x1_0000));
        assert_eq!(abi(Some((b"Roost", 2, 7))), None);
        assert_eq!(abi(Some((b"Xen", 1, 7))), None);
        assert_eq!(abi(None), None);
    }
}
