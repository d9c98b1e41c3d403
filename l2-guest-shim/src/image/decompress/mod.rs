//! Unpacks a kernel, handing the bytes on in order as they come.
//! May: alloc. Context: boot. Input: guest-controlled.
//!
//! A codec keeps the history it may refer back to and nothing else. Most heap in use at once,
//! measured with kernels of 50 to 66 MB:
//!
//! | codec | heap | why |
//! |---|---|---|
//! | gzip | 75 KiB | one window of 64 KiB and the tables |
//! | lz4 | 8 MiB | one block, reused |
//! | xz, dictionary of 32 MiB | 48 MiB | it doubles as it fills, old and new alive at once |
//! | xz, dictionary of 128 MiB | 96 MiB | as above, as far as the kernel fills it |
//! | zstd, window of 128 MiB | 65 MiB | window or kernel, rounded up to a power of two, and 1 MiB |
//!
//! Of zstd's window only the pages that the kernel fills are ever touched. Stack: 36 KiB (xz).
//!
//! Every check a format carries is made: CRC-32 (gzip, xz), xxHash (zstd), and the unpacked size
//! for all. The legacy lz4 frame has no checksum.

mod gzip;
mod lz4;
mod xz;
mod zstd;

use super::bzimage::{Codec, Payload};
use alloc::vec::Vec;
use core::fmt;

/// Bytes handed on at a time by the codecs that need a buffer of ours.
const CHUNK: usize = 64 << 10;

/// Why a kernel did not unpack. `E` is the receiver's own error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackError<E> {
    /// The packed bytes make no sense.
    Damaged {
        /// What they are packed with.
        codec: Codec,
        /// What is wrong with them.
        what: &'static str,
    },
    /// They unpack to another size than the file announces.
    Size {
        /// What they are packed with.
        codec: Codec,
        /// Bytes announced.
        announced: usize,
        /// Bytes there were; when there are too many, those counted so far.
        got: usize,
    },
    /// The heap is too small.
    OutOfMemory(Codec),
    /// The receiver refused the bytes.
    Sink(E),
}

impl<E: fmt::Display> fmt::Display for UnpackError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { codec, what } => {
                write!(f, "kernel is damaged ({codec}: {what}): copy it again")
            }
            Self::Size { codec, announced, got } => write!(
                f,
                "kernel is damaged ({codec}: {got} bytes instead of {announced}): copy it again"
            ),
            Self::OutOfMemory(codec) => {
                write!(f, "no memory to unpack a kernel packed with {codec}: give the guest more")
            }
            Self::Sink(error) => error.fmt(f),
        }
    }
}

impl<E: core::error::Error> core::error::Error for UnpackError<E> {}

impl Payload<'_> {
    /// Unpacks the kernel into `sink`, which gets all bytes in order, in pieces of any size.
    ///
    /// # Errors
    /// The first [`UnpackError`]; what was handed on before is then worth nothing.
    pub fn unpack<E>(
        &self,
        sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), UnpackError<E>> {
        let mut output = Output { codec: self.codec, announced: self.unpacked, written: 0, sink };
        match self.codec {
            Codec::Stored => output.write(self.stream)?,
            Codec::Gzip => gzip::unpack(self.stream, &mut output)?,
            Codec::Xz => xz::unpack(self.stream, &mut output)?,
            Codec::Lz4 => lz4::unpack(self.stream, &mut output)?,
            Codec::Zstd => zstd::unpack(self.stream, &mut output)?,
        }
        output.finish()
    }
}

/// The sink, with the announced size as its limit.
struct Output<S> {
    codec: Codec,
    announced: usize,
    written: usize,
    sink: S,
}

impl<S, E> Output<S>
where
    S: FnMut(&[u8]) -> Result<(), E>,
{
    fn write(&mut self, bytes: &[u8]) -> Result<(), UnpackError<E>> {
        self.written += bytes.len();
        if self.written > self.announced {
            return Err(self.wrong_size());
        }
        (self.sink)(bytes).map_err(UnpackError::Sink)
    }

    /// Bytes still to come.
    fn left(&self) -> usize {
        self.announced - self.written
    }

    fn finish(self) -> Result<(), UnpackError<E>> {
        if self.left() == 0 { Ok(()) } else { Err(self.wrong_size()) }
    }

    fn wrong_size(&self) -> UnpackError<E> {
        UnpackError::Size { codec: self.codec, announced: self.announced, got: self.written }
    }

    fn damaged(&self, what: &'static str) -> UnpackError<E> {
        UnpackError::Damaged { codec: self.codec, what }
    }

    /// A zeroed buffer.
    fn buffer(&self, len: usize) -> Result<Vec<u8>, UnpackError<E>> {
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len).map_err(|_| UnpackError::OutOfMemory(self.codec))?;
        buffer.resize(len, 0);
        Ok(buffer)
    }
}
