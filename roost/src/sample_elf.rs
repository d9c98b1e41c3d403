//! Builds small ELF files for tests.

use object::elf::{
    EM_X86_64, ET_EXEC, FileType, Machine, PF_X, PT_LOAD, PT_NOTE, ProgramFlags, ProgramType,
};

/// One loadable segment.
#[derive(Clone, Debug)]
pub struct Segment {
    flags: ProgramFlags,
    virt: u64,
    phys: u64,
    bytes: Vec<u8>,
    memory: u64,
}

/// A segment with these flags, addresses, bytes and size in memory.
pub fn segment(flags: ProgramFlags, virt: u64, phys: u64, bytes: &[u8], memory: u64) -> Segment {
    Segment { flags, virt, phys, bytes: bytes.into(), memory }
}

/// What to build.
#[derive(Clone, Debug)]
pub struct Sample {
    /// `e_type`.
    pub elf_type: FileType,
    /// `e_machine`.
    pub machine: Machine,
    /// `e_entry`.
    pub entry: u64,
    /// Loadable segments.
    pub segments: Vec<Segment>,
    /// A note: name, type, content.
    pub note: Option<(&'static [u8], u32, u32)>,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            elf_type: ET_EXEC,
            machine: EM_X86_64,
            entry: 0x10_0000,
            segments: vec![segment(PF_X, 0x10_0000, 0x10_0000, b"\xeb\xfe", 2)],
            note: None,
        }
    }
}

impl Sample {
    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let count = self.segments.len() + usize::from(self.note.is_some());
        let mut content = 64 + 56 * count;
        let (mut headers, mut tail) = (Vec::new(), Vec::new());
        let mut header =
            |kind: ProgramType, flags: u32, virt: u64, phys: u64, bytes: &[u8], memory: u64| {
                headers.extend(kind.0.to_le_bytes());
                headers.extend(flags.to_le_bytes());
                for field in [content as u64, virt, phys, bytes.len() as u64, memory, 4] {
                    headers.extend(field.to_le_bytes());
                }
                tail.extend_from_slice(bytes);
                content += bytes.len();
            };
        if let Some((name, kind, value)) = self.note {
            let mut note = Vec::new();
            for field in [name.len() as u32 + 1, 4, kind] {
                note.extend(field.to_le_bytes());
            }
            note.extend_from_slice(name);
            note.resize((note.len() + 1).next_multiple_of(4), 0);
            note.extend(value.to_le_bytes());
            header(PT_NOTE, 0, 0, 0, &note, note.len() as u64);
        }
        for part in &self.segments {
            header(PT_LOAD, part.flags.0, part.virt, part.phys, &part.bytes, part.memory);
        }
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(self.elf_type.0.to_le_bytes());
        file.extend(self.machine.0.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for field in [self.entry, 64, 0] {
            file.extend(field.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for field in [64, 56, count as u16, 0, 0, 0] {
            file.extend(u16::to_le_bytes(field));
        }
        file.extend(headers);
        file.extend(tail);
        file
    }
}
