//! Reads what a native guest is told at its start.
//! May: unsafe. Context: boot. Input: written by the hypervisor, trusted.
#![expect(unsafe_code, reason = "memory that the hypervisor has filled")]

use pv_abi::ext::{NativeBoot, Span};
use zerocopy::FromBytes;

/// Most bytes of a command line that are kept.
const MOST: usize = 256;

/// The boot block, and a copy of the command line: the guest's own tables may not map it, and its
/// checks may overwrite it.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    /// The block.
    pub block: NativeBoot,
    cmdline: [u8; MOST],
    length: usize,
}

impl Boot {
    /// Reads the block at guest-physical address `gpa`; `None` if there is none.
    ///
    /// # Safety
    /// It is the address that the hypervisor passed, in the tables that it has made.
    #[must_use]
    pub unsafe fn read(gpa: u64) -> Option<Self> {
        let span = Span { gpa, len: size_of::<NativeBoot>() as u64 };
        // SAFETY: the caller's promise: memory is mapped one to one, and the block is there.
        let block = NativeBoot::read_from_bytes(unsafe { bytes(span) }).ok()?;
        // SAFETY: as above; the hypervisor wrote the command line.
        let line = unsafe { bytes(block.cmdline) };
        let (mut cmdline, length) = ([0; MOST], line.len().min(MOST));
        cmdline[..length].copy_from_slice(&line[..length]);
        Some(Self { block, cmdline, length })
    }

    /// The command line; empty if it is no UTF-8.
    #[must_use]
    pub fn cmdline(&self) -> &str {
        core::str::from_utf8(&self.cmdline[..self.length]).unwrap_or_default()
    }
}

unsafe fn bytes<'a>(span: Span) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(span.gpa as *const u8, span.len as usize) }
}
