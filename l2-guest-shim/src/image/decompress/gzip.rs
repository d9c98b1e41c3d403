//! Unpacks a gzip member (RFC 1952).
//! May: alloc. Context: boot. Input: guest-controlled.

use super::{CHUNK, Output, UnpackError};
use alloc::boxed::Box;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// Flag bits of the header; bit 0 ("text") changes nothing.
mod flag {
    pub const HEADER_CRC: u8 = 1 << 1;
    pub const EXTRA: u8 = 1 << 2;
    pub const NAME: u8 = 1 << 3;
    pub const COMMENT: u8 = 1 << 4;
    pub const RESERVED: u8 = 0xe0;
}
const METHOD_DEFLATE: u8 = 8;
/// CRC-32 and size.
const TRAILER: usize = 8;

pub(super) fn unpack<S, E>(stream: &[u8], output: &mut Output<S>) -> Result<(), UnpackError<E>>
where
    S: FnMut(&[u8]) -> Result<(), E>,
{
    let mut input = after_header(stream).ok_or_else(|| output.damaged("bad header"))?;
    let mut state = Box::<DecompressorOxide>::default();
    // The inflater refers back into its output, so the buffer is the 32 KiB window as well. It
    // wraps around, and must be a power of two for that.
    let mut window = output.buffer(CHUNK)?;
    let mut at = 0;
    let mut crc = crc32fast::Hasher::new();
    loop {
        let (status, read, written) = decompress(&mut state, input, &mut window, at, 0);
        input = &input[read..];
        crc.update(&window[at..][..written]);
        output.write(&window[at..][..written])?;
        at = (at + written) % window.len();
        match status {
            TINFLStatus::Done => break,
            TINFLStatus::HasMoreOutput => {}
            TINFLStatus::FailedCannotMakeProgress => {
                return Err(output.damaged("stream is cut short"));
            }
            _ => return Err(output.damaged("bad block")),
        }
    }
    let trailer = input.first_chunk::<TRAILER>().ok_or_else(|| output.damaged("no checksum"))?;
    if trailer[..4] != crc.finalize().to_le_bytes() {
        return Err(output.damaged("checksum is wrong"));
    }
    Ok(())
}

/// What follows the member header.
fn after_header(stream: &[u8]) -> Option<&[u8]> {
    let (fixed, mut rest) = stream.split_first_chunk::<10>()?;
    let flags = fixed[3];
    if fixed[..3] != [0x1f, 0x8b, METHOD_DEFLATE] || flags & flag::RESERVED != 0 {
        return None;
    }
    if flags & flag::EXTRA != 0 {
        let (len, extra) = rest.split_first_chunk()?;
        rest = extra.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    for text in [flag::NAME, flag::COMMENT] {
        if flags & text != 0 {
            rest = &rest[memchr::memchr(0, rest)? + 1..];
        }
    }
    if flags & flag::HEADER_CRC != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_header_fields_are_skipped() {
        let with = |flags: u8, fields: &[u8]| {
            let mut header = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3];
            header.extend_from_slice(fields);
            header
        };
        let all = flag::HEADER_CRC | flag::EXTRA | flag::NAME | flag::COMMENT;
        let header = with(all, b"\x03\0xyzname\0comment\0CRrest");
        assert_eq!(after_header(&header), Some(&b"rest"[..]));
        assert_eq!(after_header(&with(0, b"rest")), Some(&b"rest"[..]));
        assert_eq!(after_header(&with(flag::EXTRA, b"\x09\0xyz")), None, "field is cut short");
        assert_eq!(after_header(&with(flag::NAME, b"name")), None, "no end of name");
        assert_eq!(after_header(&with(flag::RESERVED, b"rest")), None);
        assert_eq!(after_header(&[0x1f, 0x8b, 7, 0, 0, 0, 0, 0, 0, 3]), None, "method");
    }
}
