//! Finds the kernel inside the file a user hands in.
//! May: nothing. Context: boot. Input: guest-controlled.
//!
//! A bzImage is a boot sector and set-up code, then protected-mode code that holds the packed
//! kernel (Linux boot protocol, "The Real-Mode Kernel Header"). Only the header fields that lead
//! to the payload are read; none of that code ever runs. An ELF file is its own payload.

use core::fmt;

/// How a kernel is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Not packed: a plain ELF file.
    Stored,
    /// DEFLATE in a gzip wrapper (RFC 1952).
    Gzip,
    /// LZMA2, usually behind the x86 branch filter, in an xz container.
    Xz,
    /// LZ4 blocks in the *legacy* frame.
    Lz4,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stored => "stored",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// The packed kernel inside a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload<'file> {
    /// How it is packed.
    pub codec: Codec,
    /// The packed bytes, as the codec defines them.
    pub stream: &'file [u8],
    /// Bytes once unpacked, as the file says; unpacking ends with an error if it is not so.
    pub unpacked: usize,
}

/// Why a file holds no kernel that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InspectError {
    /// Neither a bzImage nor an ELF file.
    NotAKernel,
    /// A kernel for 32-bit or other processors.
    Not64Bit,
    /// The boot protocol version (major << 8 | minor) is too old to name the payload.
    TooOld(u16),
    /// The file ends before the payload does.
    Truncated {
        /// Bytes the header promises.
        needed: u64,
        /// Bytes there are.
        len: usize,
    },
    /// The payload starts with none of the known magic numbers.
    UnknownCompression([u8; 4]),
}

impl fmt::Display for InspectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAKernel => {
                f.write_str("not a kernel: give a bzImage (vmlinuz) or an ELF file (vmlinux)")
            }
            Self::Not64Bit => f.write_str("not an x86-64 kernel: only 64-bit kernels can run"),
            Self::TooOld(version) => write!(
                f,
                "boot protocol {}.{:02} is too old: use a kernel with 2.08 or later",
                version >> 8,
                version & 0xff
            ),
            Self::Truncated { needed, len } => {
                write!(f, "kernel file is cut short: {len} of {needed} bytes; copy it again")
            }
            Self::UnknownCompression(magic) => write!(
                f,
                "kernel is packed with {} (magic {:02x} {:02x} {:02x} {:02x}): \
                 use one packed with gzip, xz, lz4 or zstd",
                unsupported_name(magic),
                magic[0],
                magic[1],
                magic[2],
                magic[3]
            ),
        }
    }
}

impl core::error::Error for InspectError {}

/// Offsets in the set-up header and the versions that brought them.
mod header {
    pub const SETUP_SECTORS: usize = 0x1f1;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const XLOADFLAGS: usize = 0x236;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
    /// First byte past the last field used.
    pub const END: usize = 0x250;

    pub const SECTOR: u64 = 512;
    /// What a set-up size of 0 stands for.
    pub const DEFAULT_SETUP_SECTORS: u8 = 4;
    /// Payload offset and length exist from here on.
    pub const HAS_PAYLOAD: u16 = 0x208;
    /// `xloadflags` exists from here on.
    pub const HAS_XLOADFLAGS: u16 = 0x20c;
    /// `xloadflags`: the kernel has a 64-bit entry point.
    pub const KERNEL_64: u16 = 1;
}

/// Bytes behind a compressed stream that give its unpacked size.
const SIZE_WORD: usize = 4;

/// Finds the payload of `file` and how it is packed.
///
/// # Errors
/// [`InspectError`] says why the file cannot be used.
pub fn inspect(file: &[u8]) -> Result<Payload<'_>, InspectError> {
    if file.starts_with(b"\x7fELF") {
        return plain_elf(file);
    }
    if bytes(file, header::BOOT_FLAG) != Some([0x55, 0xaa])
        || bytes(file, header::MAGIC) != Some(*b"HdrS")
    {
        return Err(InspectError::NotAKernel);
    }
    packed(payload(file)?)
}

/// The payload an ELF file is. The loader looks at the rest of its header.
fn plain_elf(file: &[u8]) -> Result<Payload<'_>, InspectError> {
    use elf::abi::{EI_CLASS, ELFCLASS64, EM_X86_64};
    const MACHINE: usize = 18;
    let machine = bytes(file, MACHINE)
        .map(u16::from_le_bytes)
        .ok_or(InspectError::Truncated { needed: 64, len: file.len() })?;
    if file[EI_CLASS] != ELFCLASS64 || machine != EM_X86_64 {
        return Err(InspectError::Not64Bit);
    }
    Ok(Payload { codec: Codec::Stored, stream: file, unpacked: file.len() })
}

/// The bytes of `file` that its set-up header calls the payload.
fn payload(file: &[u8]) -> Result<&[u8], InspectError> {
    let cut = |needed: u64| InspectError::Truncated { needed, len: file.len() };
    let short = cut(header::END as u64);
    let half = |at| bytes(file, at).map(u16::from_le_bytes).ok_or(short);
    let word = |at| bytes(file, at).map(u32::from_le_bytes).ok_or(short);

    let version = half(header::VERSION)?;
    if version < header::HAS_PAYLOAD {
        return Err(InspectError::TooOld(version));
    }
    if version >= header::HAS_XLOADFLAGS && half(header::XLOADFLAGS)? & header::KERNEL_64 == 0 {
        return Err(InspectError::Not64Bit);
    }
    let sectors = match file[header::SETUP_SECTORS] {
        0 => header::DEFAULT_SETUP_SECTORS,
        sectors => sectors,
    };
    // Sums of 32-bit numbers: they fit.
    let start =
        (u64::from(sectors) + 1) * header::SECTOR + u64::from(word(header::PAYLOAD_OFFSET)?);
    let end = start + u64::from(word(header::PAYLOAD_LENGTH)?);
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    range.and_then(|(start, end)| file.get(start..end)).ok_or(cut(end))
}

/// Tells the codec by its magic number and splits off the size word.
fn packed(payload: &[u8]) -> Result<Payload<'_>, InspectError> {
    let magic: [u8; 4] = bytes(payload, 0).ok_or(InspectError::NotAKernel)?;
    let codec = match magic {
        [0x1f, 0x8b, ..] => Codec::Gzip,
        [0xfd, b'7', b'z', b'X'] => Codec::Xz,
        [0x02, 0x21, 0x4c, 0x18] => Codec::Lz4,
        [0x28, 0xb5, 0x2f, 0xfd] => Codec::Zstd,
        other => return Err(InspectError::UnknownCompression(other)),
    };
    let (stream, size) = payload.split_last_chunk::<SIZE_WORD>().ok_or(InspectError::NotAKernel)?;
    // A gzip stream ends with its size by itself, so the kernel build appends none.
    let stream = if codec == Codec::Gzip { payload } else { stream };
    Ok(Payload { codec, stream, unpacked: u32::from_le_bytes(*size) as usize })
}

/// The other codecs that kernels are built with.
fn unsupported_name(magic: &[u8; 4]) -> &'static str {
    match magic {
        [b'B', b'Z', b'h', _] => "bzip2",
        [0x5d, 0, 0, _] => "lzma",
        [0x89, b'L', b'Z', b'O'] => "lzo",
        _ => "an unknown codec",
    }
}

/// The `N` bytes of `file` at `at`, if it has them.
fn bytes<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::{self, bzimage};

    #[test]
    fn payload_and_size_are_found() {
        for codec in fixture::PACKED {
            let packed = fixture::pack(codec, &[7; 1000]);
            let file = bzimage(&packed);
            let found = inspect(&file).unwrap();
            assert_eq!((found.codec, found.unpacked), (codec, 1000));
            // gzip's size word is part of its stream, the others' is not.
            let expected = if codec == Codec::Gzip { packed.len() } else { packed.len() - 4 };
            assert_eq!(found.stream, &packed[..expected]);
        }
    }

    #[test]
    fn elf_is_its_own_payload() {
        let file = fixture::kernel();
        let found = inspect(&file).unwrap();
        assert_eq!(found, Payload { codec: Codec::Stored, stream: &file, unpacked: file.len() });
    }

    #[test]
    fn zero_setup_sectors_mean_four() {
        let mut file = bzimage(&fixture::pack(Codec::Lz4, b"kernel"));
        assert_eq!(file[header::SETUP_SECTORS], 4);
        file[header::SETUP_SECTORS] = 0;
        assert_eq!(inspect(&file).unwrap().codec, Codec::Lz4);
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(inspect(b""), Err(InspectError::NotAKernel));
        assert_eq!(inspect(&[0; 4096]), Err(InspectError::NotAKernel));
        let mut pe = bzimage(b"");
        pe[header::MAGIC] = 0;
        assert_eq!(inspect(&pe), Err(InspectError::NotAKernel));
        assert_eq!(
            inspect(&bzimage(b"")),
            Err(InspectError::NotAKernel),
            "no room for a magic number"
        );
    }

    #[test]
    fn thirty_two_bit_kernels_are_refused() {
        let mut file = bzimage(&fixture::pack(Codec::Lz4, b"kernel"));
        file[header::XLOADFLAGS] &= !1;
        assert_eq!(inspect(&file), Err(InspectError::Not64Bit));
        let mut file = fixture::kernel();
        file[4] = 1;
        assert_eq!(inspect(&file), Err(InspectError::Not64Bit));
    }

    #[test]
    fn old_protocols_are_refused() {
        let mut file = bzimage(&fixture::pack(Codec::Lz4, b"kernel"));
        file[header::VERSION..][..2].copy_from_slice(&0x207u16.to_le_bytes());
        let error = inspect(&file).unwrap_err();
        assert_eq!(error, InspectError::TooOld(0x207));
        assert!(error.to_string().starts_with("boot protocol 2.07 is too old"), "{error}");
    }

    #[test]
    fn every_cut_is_noticed() {
        let file = bzimage(&fixture::pack(Codec::Gzip, b"kernel"));
        for len in 0..file.len() {
            let expected = match inspect(&file[..len]) {
                Err(InspectError::NotAKernel) => len < header::VERSION,
                Err(InspectError::Truncated { needed, len: got }) => {
                    got == len && needed > len as u64
                }
                _ => false,
            };
            assert!(expected, "{len}: {:?}", inspect(&file[..len]));
        }
    }

    #[test]
    fn unknown_codecs_are_named() {
        let error = inspect(&bzimage(b"BZh9 and more")).unwrap_err();
        assert_eq!(error, InspectError::UnknownCompression(*b"BZh9"));
        assert!(error.to_string().contains("bzip2 (magic 42 5a 68 39)"), "{error}");
    }
}
