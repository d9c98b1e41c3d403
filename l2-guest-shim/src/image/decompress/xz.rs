//! Unpacks an xz stream.
//! May: alloc. Context: boot. Input: guest-controlled.
//!
//! The decoder's dictionary starts at 64 KiB and doubles with what it holds, up to the size the
//! stream asks for. A stream that asks for more than it needs costs nothing, but there is no way
//! to reserve the dictionary at once.

use super::{CHUNK, Output, UnpackError};
use lzma_rust2::{Error, Read, XzReader};

pub(super) fn unpack<S, E>(stream: &[u8], output: &mut Output<S>) -> Result<(), UnpackError<E>>
where
    S: FnMut(&[u8]) -> Result<(), E>,
{
    let mut reader = XzReader::new(stream, false);
    let mut chunk = output.buffer(CHUNK)?;
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => output.write(&chunk[..read])?,
            Err(Error::OutOfMemory(_)) => return Err(UnpackError::OutOfMemory(output.codec)),
            Err(error) => return Err(output.damaged(reason(error))),
        }
    }
}

fn reason(error: Error) -> &'static str {
    match error {
        Error::InvalidData(what)
        | Error::InvalidInput(what)
        | Error::OutOfMemory(what)
        | Error::Other(what)
        | Error::Unsupported(what)
        | Error::WriteZero(what) => what,
        Error::Eof => "stream is cut short",
        Error::Interrupted => "interrupted",
    }
}
