//! Builds kernels for the tests.

use super::bzimage::{Codec, Payload};
use super::elf::loader::Destination;
use lzma_rust2::{CheckType, FilterType, Write, XzOptions, XzWriter};
use std::ops::Range;

/// All codecs of packed kernels.
pub const PACKED: [Codec; 4] = [Codec::Gzip, Codec::Xz, Codec::Lz4, Codec::Zstd];

/// Where [`kernel`] may go.
pub const RAM: Range<u64> = 0x10_0000..0x18_0000;

/// One PT_LOAD.
pub struct Load {
    pub paddr: u64,
    pub vaddr: u64,
    pub data: Vec<u8>,
    /// Bytes in memory.
    pub memory: u64,
    /// PF_X 1, PF_W 2, PF_R 4.
    pub flags: u32,
}

/// An ELF file: program headers, data, then notes.
pub struct Elf {
    pub loads: Vec<Load>,
    pub notes: Vec<u8>,
}

impl Elf {
    pub fn build(&self) -> Vec<u8> {
        let count = self.loads.len() + 1;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        push16(&mut file, &[2, 62]);
        push32(&mut file, &[1]);
        push64(&mut file, &[0x100_0000, 64, 0]);
        push32(&mut file, &[0]);
        push16(&mut file, &[64, 56, count as u16, 64, 0, 0]);
        let mut at = file.len() as u64 + 56 * count as u64;
        let mut header = |kind, flags, vaddr, paddr, len: usize, memory| {
            push32(&mut file, &[kind, flags]);
            push64(&mut file, &[at, vaddr, paddr, len as u64, memory, 4]);
            at += len as u64;
        };
        for load in &self.loads {
            header(1, load.flags, load.vaddr, load.paddr, load.data.len(), load.memory);
        }
        header(4, 4, 0, 0, self.notes.len(), self.notes.len() as u64);
        self.loads.iter().for_each(|load| file.extend(&load.data));
        file.extend(&self.notes);
        file
    }
}

fn push16(file: &mut Vec<u8>, values: &[u16]) {
    values.iter().for_each(|value| file.extend(value.to_le_bytes()));
}

fn push32(file: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| file.extend(value.to_le_bytes()));
}

fn push64(file: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| file.extend(value.to_le_bytes()));
}

/// An ELF note.
pub fn note(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    push32(&mut note, &[name.len() as u32 + 1, value.len() as u32, kind]);
    note.extend(name.as_bytes());
    note.push(0);
    note.resize(note.len().next_multiple_of(4), 0);
    note.extend(value);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// Something like code: repetitive, with calls for the branch filter to change.
pub fn code(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let mut code = Vec::with_capacity(len + 16);
    while code.len() < len {
        code.extend([0xe8, random(), random() & 3, 0, 0]);
        code.extend_from_slice(&b"\x48\x89\xe5\x55\x53\x41\x54"[..usize::from(random() % 7)]);
    }
    code.truncate(len);
    code
}

/// The kernel of the tests: text, per-CPU data without a virtual address, and data with a tail of
/// zeros.
pub fn elf() -> Elf {
    const BASE: u64 = 0xffff_ffff_8000_0000;
    let load =
        |paddr, vaddr, data: Vec<u8>, memory, flags| Load { paddr, vaddr, data, memory, flags };
    let data = vec![0x33; 0x800];
    Elf {
        loads: vec![
            load(0x10_0000, BASE + 0x10_0000, code(0x8000), 0x8000, 5),
            load(0x12_0000, 0, code(0x300), 0x300, 6),
            load(0x13_0000, BASE + 0x13_0000, data, 0x1800, 7),
        ],
        notes: [
            note("Xen", 1, &(BASE + 0x10_0010).to_le_bytes()),
            note("Xen", 3, &BASE.to_le_bytes()),
            note("Xen", 10, b"!writable_page_tables"),
        ]
        .concat(),
    }
}

/// [`elf`] as a file.
pub fn kernel() -> Vec<u8> {
    elf().build()
}

/// Packs `data` as a kernel build does, size word included.
pub fn pack(codec: Codec, data: &[u8]) -> Vec<u8> {
    let mut packed = match codec {
        Codec::Stored => return data.to_vec(),
        Codec::Gzip => return gzip(data),
        Codec::Xz => xz(data),
        Codec::Lz4 => lz4(data),
        Codec::Zstd => {
            ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
        }
    };
    push32(&mut packed, &[data.len() as u32]);
    packed
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3];
    packed.extend(miniz_oxide::deflate::compress_to_vec(data, 6));
    push32(&mut packed, &[crc32fast::hash(data), data.len() as u32]);
    packed
}

fn xz(data: &[u8]) -> Vec<u8> {
    let mut options = XzOptions::with_preset(1);
    options.set_check_sum_type(CheckType::Crc32);
    options.prepend_pre_filter(FilterType::BcjX86, 0);
    let mut writer = XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}

fn lz4(data: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
    for block in data.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        push32(&mut packed, &[block.len() as u32]);
        packed.extend(block);
    }
    packed
}

/// A bzImage of protocol 2.15 around `payload`.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SETUP_SECTORS: u8 = 4;
    const CODE: usize = 32;
    let mut file = vec![0; (usize::from(SETUP_SECTORS) + 1) * 512 + CODE];
    file[0x1f1] = SETUP_SECTORS;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    file[0x236] = 1;
    file[0x248..0x24c].copy_from_slice(&(CODE as u32).to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend(payload);
    file
}

/// [`kernel`] in a file of the given kind.
pub fn image(codec: Codec) -> Vec<u8> {
    match codec {
        Codec::Stored => kernel(),
        codec => bzimage(&pack(codec, &kernel())),
    }
}

/// What `payload` unpacks to.
pub fn unpack(payload: &Payload<'_>) -> Result<Vec<u8>, super::UnpackError<()>> {
    let mut unpacked = Vec::new();
    payload.unpack(|bytes| {
        unpacked.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(unpacked)
}

/// Guest memory that fails the test when something is stored outside it.
#[derive(Debug)]
pub struct Memory {
    range: Range<u64>,
    bytes: Vec<u8>,
}

impl Memory {
    /// Memory at `range`, full of `fill`.
    pub fn new(range: Range<u64>, fill: u8) -> Self {
        let bytes = vec![fill; (range.end - range.start) as usize];
        Self { range, bytes }
    }

    pub fn at(&self, paddr: u64, len: usize) -> &[u8] {
        &self.bytes[(paddr - self.range.start) as usize..][..len]
    }

    fn at_mut(&mut self, paddr: u64, len: u64) -> &mut [u8] {
        let end = paddr.checked_add(len).expect("store wraps around");
        assert!(self.range.start <= paddr && end <= self.range.end, "store outside: {paddr:#x}");
        &mut self.bytes[(paddr - self.range.start) as usize..][..len as usize]
    }
}

impl Destination for &mut Memory {
    type Error = ();

    fn write(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), ()> {
        self.at_mut(paddr, bytes.len() as u64).copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, paddr: u64, len: u64) -> Result<(), ()> {
        self.at_mut(paddr, len).fill(0);
        Ok(())
    }
}
