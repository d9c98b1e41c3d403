//! Turns a kernel file into a kernel in memory, ready to start under the shim.
//! May: alloc. Context: boot. Input: guest-controlled.
//!
//! | step | module | gives |
//! |---|---|---|
//! | recognise the file | [`bzimage`] | codec, packed bytes, unpacked size |
//! | unpack, byte after byte | [`decompress`] | the ELF file as a stream |
//! | place the segments | [`elf`] | kernel in memory, its notes |
//! | read the notes | [`notes`] | entry point, layout, features |
//! | find the SYSCALLs | [`patch`] | what to write over them |
//! | find what is not needed here | [`symbols`], [`identity`], [`gsbase`] | what to write over it |
//!
//! [`load`] does the first three. The file is whatever a user hands in: no step panics, and none
//! stores outside the memory it was allowed.

pub mod bzimage;
pub mod decompress;
pub mod elf;
#[cfg(test)]
mod fixture;
pub mod gsbase;
pub mod identity;
pub mod notes;
pub mod patch;
pub mod symbols;
#[cfg(test)]
mod tests;

pub use bzimage::{InspectError, Payload, inspect};
pub use decompress::UnpackError;
pub use elf::loader::{Destination, ElfError, Loaded};

use core::fmt;
use core::ops::Range;
use elf::loader::Loader;

/// Why a kernel file did not get into memory. `E` is the destination's own error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError<E> {
    /// The file is not usable.
    Inspect(InspectError),
    /// It does not unpack.
    Unpack(UnpackError<ElfError<E>>),
    /// What it unpacks to does not load.
    Elf(ElfError<E>),
}

impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inspect(error) => error.fmt(f),
            Self::Unpack(error) => error.fmt(f),
            Self::Elf(error) => error.fmt(f),
        }
    }
}

impl<E: core::error::Error> core::error::Error for LoadError<E> {}

/// Unpacks the kernel in `file` to the guest-physical addresses it asks for, all of which must lie
/// in `allowed`.
///
/// # Errors
/// The first [`LoadError`]. Parts of `allowed` may have been written by then.
pub fn load<D: Destination>(
    file: &[u8],
    allowed: Range<u64>,
    destination: D,
) -> Result<Loaded, LoadError<D::Error>> {
    let payload = inspect(file).map_err(LoadError::Inspect)?;
    let mut loader = Loader::new(destination, allowed);
    payload.unpack(|bytes| loader.feed(bytes)).map_err(LoadError::Unpack)?;
    loader.finish().map_err(LoadError::Elf)
}
