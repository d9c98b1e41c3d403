//! Lays out the ELF note by which a kernel says that it speaks the native ABI (spec rule ST-1).
//! May: nothing. Input: trusted.
//!
//! The note must lie in a `PT_NOTE` segment, as every section whose name starts with `.note` does.

use crate::ext;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Name of the note, without the zero that ends it in the file.
pub const NAME: &str = "Roost";
/// Type of the note.
pub const ABI_VERSION: u32 = 1;

/// The whole note, to be put into a section `.note.Roost`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ElfNote {
    /// Bytes of the name, its zero included.
    pub name_size: u32,
    /// Bytes of the content.
    pub content_size: u32,
    /// [`ABI_VERSION`].
    pub kind: u32,
    /// [`NAME`] and zeros.
    pub name: [u8; 8],
    /// The version that the kernel was written for, `major << 16 | minor`.
    pub version: u32,
}

layout! {
    ElfNote: 0x18 {
        0x00 name_size,
        0x04 content_size,
        0x08 kind,
        0x0c name,
        0x14 version,
    }
}

impl ElfNote {
    /// The note of a kernel that was written for [`ext::VERSION`].
    pub const CURRENT: Self = Self {
        name_size: NAME.len() as u32 + 1,
        content_size: size_of::<u32>() as u32,
        kind: ABI_VERSION,
        name: *b"Roost\0\0\0",
        version: ext::VERSION,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_is_named() {
        let ElfNote { name, name_size, .. } = ElfNote::CURRENT;
        assert_eq!(name[..name_size as usize], *b"Roost\0");
        assert!(name.starts_with(NAME.as_bytes()));
    }
}
