//! Whole files, from every codec to memory, sound and damaged.

use super::bzimage::Codec;
use super::fixture::{self, Memory, PACKED, RAM};
use super::notes::{Features, XenNotes};
use super::{ElfError, LoadError, UnpackError, inspect, load};
use proptest::prelude::*;

const CODECS: [Codec; 5] = [Codec::Stored, Codec::Gzip, Codec::Xz, Codec::Lz4, Codec::Zstd];

#[test]
fn every_codec_loads_the_same_kernel() {
    for codec in CODECS {
        let mut memory = Memory::new(RAM, 0xee);
        let loaded = load(&fixture::image(codec), RAM, &mut memory).unwrap();
        assert_eq!(loaded.memory, 0x10_0000..0x13_1800, "{codec}");
        for load in fixture::elf().loads {
            assert_eq!(memory.at(load.paddr, load.data.len()), load.data, "{codec}");
        }
        assert_eq!(memory.at(0x13_0800, 0x1000), [0; 0x1000]);
        let notes = XenNotes::parse(&loaded.notes, Features::WRITABLE_PAGE_TABLES).unwrap();
        assert_eq!(notes.entry, Some(0xffff_ffff_8010_0010));
    }
}

#[test]
fn large_kernels_unpack_in_pieces() {
    for (codec, len) in [
        (Codec::Gzip, 1 << 20),
        (Codec::Xz, 1 << 20),
        // More than a block.
        (Codec::Lz4, 9 << 20),
        // More than the packer's window.
        (Codec::Zstd, 1 << 20),
    ] {
        let kernel = fixture::code(len);
        let file = fixture::bzimage(&fixture::pack(codec, &kernel));
        let mut unpacked = Vec::new();
        let mut pieces = 0;
        let result: Result<(), UnpackError<()>> = inspect(&file).unwrap().unpack(|bytes| {
            unpacked.extend_from_slice(bytes);
            pieces += 1;
            Ok(())
        });
        assert_eq!(result, Ok(()), "{codec}");
        assert!(unpacked == kernel, "{codec}");
        assert!(pieces > 1, "{codec}");
    }
}

/// Made by the reference tools with the options of a kernel build.
const TEXT: &[u8] = b"Roost unpacks this text. Roost unpacks this text.\n";
/// `gzip -n -9`
const GZIP: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\x0b\xca\xcf/.Q(\xcd+HL\xce.V(\xc9\xc8\x04\x12\
    \xa9\x15%z\nA8$\xb8\0U\x86\xcbq2\0\0\0";
/// `xz --check=crc32 --x86 --lzma2=preset=9,dict=32MiB`
const XZ: &[u8] =
    b"\xfd7zXZ\0\0\x01i\"\xde6\x02\x01\x04\0!\x01\x1a\0\x01\xc9\x80\xb3\xe0\x001\0 ]\0)\
    \x1b\xec\xe6tQ\x14U\xd9\0s\x17\xeb\xca\xef\xbe\xcc9\x1br\x16\xfb\x88i\xb2\xea\x16\xc4]\xbf\x80\
    \0\0U\x86\xcbq\0\x0182PX\xce\xff\x90B\x99\r\x01\0\0\0\0\x01YZ";
/// `lz4 -l -9`
const LZ4: &[u8] = b"\x02!L\x18$\0\0\0\xff\nRoost unpacks this text. \x19\0\x01Pext.\n";
/// `zstd -22 --ultra` from a pipe: a window of 128 MiB, whatever the size.
const ZSTD: &[u8] =
    b"(\xb5/\xfd\x04\x88\x05\x01\0\xd0Roost unpacks this text. \n\x01\x0018\xc7\xfc\xdd\xdc\xca";

fn reference(codec: Codec) -> Vec<u8> {
    let (stream, size): (&[u8], &[u8]) = match codec {
        Codec::Stored => (TEXT, b""),
        Codec::Gzip => (GZIP, b""),
        Codec::Xz => (XZ, b"\x32\0\0\0"),
        Codec::Lz4 => (LZ4, b"\x32\0\0\0"),
        Codec::Zstd => (ZSTD, b"\x32\0\0\0"),
    };
    [stream, size].concat()
}

#[test]
fn reference_tools_are_understood() {
    for codec in PACKED {
        let file = fixture::bzimage(&reference(codec));
        let unpacked = fixture::unpack(&inspect(&file).unwrap());
        assert_eq!(unpacked.as_deref(), Ok(TEXT), "{codec}");
    }
}

#[test]
fn a_wrong_size_is_noticed() {
    for codec in PACKED {
        for size in [49, 51, 0, u32::MAX] {
            let mut packed = reference(codec);
            packed.truncate(packed.len() - 4);
            packed.extend(size.to_le_bytes());
            let file = fixture::bzimage(&packed);
            let error = fixture::unpack(&inspect(&file).unwrap()).unwrap_err();
            match error {
                UnpackError::Size { codec: which, announced, .. } => {
                    assert_eq!((which, announced), (codec, size as usize));
                }
                // A block that does not fit its buffer.
                UnpackError::Damaged { codec: Codec::Lz4, .. } => assert!(size < 50),
                other => panic!("{codec}, {size}: {other:?}"),
            }
        }
    }
}

#[test]
fn damage_names_the_codec() {
    for codec in PACKED {
        let mut packed = reference(codec);
        let middle = packed.len() / 2;
        packed.drain(middle..middle + 3);
        let file = fixture::bzimage(&packed);
        let error = fixture::unpack(&inspect(&file).unwrap()).unwrap_err();
        match error {
            UnpackError::Damaged { codec: which, .. } | UnpackError::Size { codec: which, .. } => {
                assert_eq!(which, codec);
            }
            other => panic!("{codec}: {other:?}"),
        }
    }
}

#[test]
fn checksums_are_checked() {
    // Literal text, flipped: only the checksum can tell.
    for (codec, at) in [(Codec::Zstd, 12), (Codec::Gzip, GZIP.len() - 8)] {
        let mut packed = reference(codec);
        packed[at] ^= 1;
        let file = fixture::bzimage(&packed);
        let error = fixture::unpack(&inspect(&file).unwrap()).unwrap_err();
        assert_eq!(error, UnpackError::Damaged { codec, what: "checksum is wrong" });
    }
}

#[test]
fn a_refusal_of_the_sink_ends_it() {
    for codec in CODECS {
        let file = fixture::image(codec);
        let mut calls = 0;
        let result = inspect(&file).unwrap().unpack(|_| {
            calls += 1;
            Err("full")
        });
        assert_eq!((result, calls), (Err(UnpackError::Sink("full")), 1), "{codec}");
    }
}

#[test]
fn a_kernel_larger_than_memory_is_refused() {
    let small = RAM.start..RAM.start + 0x1_0000;
    for codec in CODECS {
        let mut memory = Memory::new(small.clone(), 0xee);
        let error = load(&fixture::image(codec), small.clone(), &mut memory).unwrap_err();
        assert!(
            matches!(error, LoadError::Unpack(UnpackError::Sink(ElfError::Header(_)))),
            "{error:?}"
        );
        assert_eq!(memory.at(small.start, 0x1_0000), [0xee; 0x1_0000], "nothing was stored");
    }
}

/// The image of each codec, packed once.
fn images() -> &'static [Vec<u8>] {
    static IMAGES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    IMAGES.get_or_init(|| CODECS.map(fixture::image).to_vec())
}

/// Goes all the way with a file that may be anything. [`Memory`] fails the test on a stray store.
fn try_all(file: &[u8]) -> bool {
    let mut memory = Memory::new(RAM, 0xee);
    match load(file, RAM, &mut memory) {
        Ok(loaded) => {
            let text = loaded.text().map_or(0..0, |text| text.memory.clone());
            let text = memory.at(text.start.max(RAM.start), (text.end - text.start) as usize);
            let _ = super::patch::find(text, 0);
            XenNotes::parse(&loaded.notes, Features::all()).is_ok()
        }
        Err(_) => false,
    }
}

proptest! {
    #[test]
    fn cut_files_are_refused(which in 0..CODECS.len(), cut in any::<prop::sample::Index>()) {
        let file = &images()[which];
        prop_assert!(!try_all(&file[..cut.index(file.len())]));
    }

    #[test]
    fn damaged_files_do_no_harm(
        which in 0..CODECS.len(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut file = images()[which].clone();
        for (at, value) in flips {
            let at = at.index(file.len());
            file[at] = value;
        }
        try_all(&file);
    }

    /// Flips among the first bytes hit headers far more often.
    #[test]
    fn damaged_headers_do_no_harm(
        which in 0..CODECS.len(),
        flips in prop::collection::vec((0usize..80, any::<u8>()), 1..4),
    ) {
        let mut file = images()[which].clone();
        let start = if CODECS[which] == Codec::Stored { 0 } else { 5 * 512 + 32 };
        for (at, value) in flips {
            file[start + at] = value;
        }
        try_all(&file);
    }

    /// A damaged ELF file under an intact container.
    #[test]
    fn damaged_kernels_do_no_harm(
        flips in prop::collection::vec((0usize..0x400, any::<u8>()), 1..6),
    ) {
        let mut kernel = fixture::kernel();
        for (at, value) in flips {
            kernel[at] = value;
        }
        try_all(&fixture::bzimage(&fixture::pack(Codec::Lz4, &kernel)));
    }
}
