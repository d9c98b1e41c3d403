//! Unpacks a Zstandard frame (RFC 8878).
//! May: alloc. Context: boot. Input: guest-controlled.
//!
//! Kernels are packed with a window of 128 MiB, larger than they are themselves: the decoder's
//! ring then holds the whole kernel until the end. Two things keep that cheap:
//!
//! - No match reaches back before the first byte, so a window as large as the kernel does. The
//!   frame header given to the decoder says that.
//! - The decoder reserves its ring when it is *re*-initialised, and otherwise grows it by doubling
//!   and copying. It is initialised twice, so there is one allocation, which is written from its
//!   start and never zeroed: pages past the kernel's size are never touched.

use super::{Output, UnpackError};
use alloc::vec::Vec;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::io::{self, Write};

/// Longest frame header.
const HEADER: usize = 18;
const DESCRIPTOR: usize = 4;
/// Frame header descriptor bit: one segment, no window descriptor.
const SINGLE_SEGMENT: u8 = 1 << 5;
const WINDOW: usize = 5;
/// Smallest window there is, bytes.
const MIN_WINDOW: usize = 1 << 10;
/// Largest window accepted, bytes.
const MAX_WINDOW: usize = 128 << 20;
/// What the decoder adds to the window: two blocks and a sentinel.
const RING_SLACK: usize = (256 << 10) + 1;

pub(super) fn unpack<S, E>(stream: &[u8], output: &mut Output<S>) -> Result<(), UnpackError<E>>
where
    S: FnMut(&[u8]) -> Result<(), E>,
{
    let header = shrunk_header(stream, output.left() as u64);
    // No sound frame asks for more than this now.
    let window = output.left().next_power_of_two().clamp(MIN_WINDOW, MAX_WINDOW);
    check_memory(output, window)?;
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(window as u64);
    for _ in 0..2 {
        decoder.init(&header[..]).map_err(|_| output.damaged("bad frame header"))?;
    }
    let read = usize::try_from(decoder.bytes_read_from_source()).ok();
    let mut blocks = read.and_then(|read| stream.get(read..)).unwrap_or_default();
    while !decoder.is_finished() {
        decoder
            .decode_blocks(&mut blocks, BlockDecodingStrategy::UptoBlocks(1))
            .map_err(|_| output.damaged("bad block"))?;
        drain(&mut decoder, output)?;
    }
    let checksum = decoder.get_checksum_from_data();
    if checksum.is_some() && checksum != decoder.get_calculated_checksum() {
        return Err(output.damaged("checksum is wrong"));
    }
    Ok(())
}

/// The first bytes of `stream` with the window no larger than `content` needs.
fn shrunk_header(stream: &[u8], content: u64) -> Vec<u8> {
    let mut header = stream[..HEADER.min(stream.len())].to_vec();
    let windowed = header.get(DESCRIPTOR).is_some_and(|bits| bits & SINGLE_SEGMENT == 0);
    if let Some(window) = header.get_mut(WINDOW).filter(|_| windowed) {
        *window = (*window).min(window_descriptor(content));
    }
    header
}

/// The smallest window descriptor for at least `content` bytes. Descriptors are floating-point
/// numbers, five bits of exponent above three of mantissa, so they sort like the sizes they name.
fn window_descriptor(content: u64) -> u8 {
    let size = |descriptor: u8| (8 + u64::from(descriptor & 7)) << (7 + (descriptor >> 3));
    (0..u8::MAX).find(|&descriptor| size(descriptor) >= content).unwrap_or(u8::MAX)
}

/// Finds out whether the ring for `window` can be had: the decoder panics when it cannot.
fn check_memory<S, E>(output: &Output<S>, window: usize) -> Result<(), UnpackError<E>>
where
    S: FnMut(&[u8]) -> Result<(), E>,
{
    Vec::<u8>::new()
        .try_reserve_exact(window + RING_SLACK)
        .map_err(|_| UnpackError::OutOfMemory(output.codec))
}

/// Hands on what the decoder no longer refers to.
fn drain<S, E>(decoder: &mut FrameDecoder, output: &mut Output<S>) -> Result<(), UnpackError<E>>
where
    S: FnMut(&[u8]) -> Result<(), E>,
{
    let mut writer = Writer { output, error: None };
    // The writer keeps the error; the one that comes back says no more.
    let _ = decoder.collect_to_writer(&mut writer);
    writer.error.map_or(Ok(()), Err)
}

/// Lets the decoder write into our output.
struct Writer<'o, S, E> {
    output: &'o mut Output<S>,
    error: Option<UnpackError<E>>,
}

impl<S, E> Write for Writer<'_, S, E>
where
    S: FnMut(&[u8]) -> Result<(), E>,
{
    fn write(&mut self, bytes: &[u8]) -> Result<usize, io::Error> {
        match self.output.write(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                self.error = Some(error);
                Err(io::Error::from(io::ErrorKind::Other))
            }
        }
    }

    fn flush(&mut self) -> Result<(), io::Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::bzimage::{Codec, Payload};
    use crate::image::fixture;

    #[test]
    fn descriptors_name_the_next_larger_window() {
        assert_eq!(window_descriptor(0), 0, "1 KiB is the least");
        assert_eq!(window_descriptor(1024), 0);
        assert_eq!(window_descriptor(1025), 1, "an eighth more");
        assert_eq!(window_descriptor(128 << 20), 0x88);
        assert_eq!(window_descriptor((128 << 20) - 1), 0x88);
        assert_eq!(window_descriptor(57_575_404), 0x7e, "56 MiB");
        assert_eq!(window_descriptor(u64::MAX), u8::MAX);
    }

    #[test]
    fn windows_shrink_but_never_grow() {
        let windowed = [0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x88, 1, 2];
        assert_eq!(shrunk_header(&windowed, 1024)[WINDOW], 0);
        assert_eq!(shrunk_header(&windowed, 1 << 40)[WINDOW], 0x88);
        let segment = [0x28, 0xb5, 0x2f, 0xfd, 0x24, 0x88, 1, 2];
        assert_eq!(shrunk_header(&segment, 1024), segment, "that byte is no window here");
        assert_eq!(shrunk_header(&windowed[..5], 1024), windowed[..5]);
    }

    #[test]
    fn frames_larger_than_announced_get_no_memory() {
        // A single segment of 64 MiB.
        let stream = b"\x28\xb5\x2f\xfd\xe0\0\0\0\x04\0\0\0\0\x01\0\0";
        let unpack = |unpacked| fixture::unpack(&Payload { codec: Codec::Zstd, stream, unpacked });
        let codec = Codec::Zstd;
        let refused = UnpackError::Damaged { codec, what: "bad frame header" };
        assert_eq!(unpack(1 << 25), Err(refused));
        let short = UnpackError::Size { codec, announced: 1 << 26, got: 0 };
        assert_eq!(unpack(1 << 26), Err(short), "an empty block");
    }
}
