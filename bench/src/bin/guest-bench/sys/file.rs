//! Opens and reads files without a library.
#![expect(unsafe_code, reason = "system calls that take pointers")]

use super::{memory::map_file_read_unmap, result};
use linux_guest::syscall::{syscall1, syscall2, syscall3, syscall4};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
};

/// An open file.
#[derive(Debug)]
pub struct Handle(File);

impl Handle {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn open(path: &str) -> Result<Self, String> {
        File::open(path).map(Self).map_err(|error| format!("{path}: {error}"))
    }

    fn number(&self) -> u64 {
        self.0.as_raw_fd() as u64
    }

    /// Reads one byte.
    #[inline(always)]
    pub fn read_byte(&mut self) {
        let mut byte = 0_u8;
        // SAFETY: the kernel writes `byte`.
        unsafe { syscall3(libc::SYS_read, self.number(), (&raw mut byte) as u64, 1) };
    }

    /// Reads 8 bytes at an offset.
    ///
    /// # Errors
    /// The kernel's reason.
    #[inline(always)]
    pub fn read_at(&mut self, offset: u64) -> Result<u64, String> {
        let mut value = 0_u64;
        let place = (&raw mut value) as u64;
        // SAFETY: the kernel writes `value`.
        let raw = unsafe { syscall4(libc::SYS_pread64, self.number(), place, 8, offset) };
        result(raw).map(|_| value).map_err(|error| error.to_string())
    }
}

/// Makes a file, closes and removes it.
///
/// # Errors
/// The kernel's reason.
#[inline(always)]
pub fn create_and_remove() -> Result<(), String> {
    let path = c"/tmp/gbf".as_ptr() as u64;
    let here = libc::AT_FDCWD as u64;
    let flags = (libc::O_CREAT | libc::O_RDWR | libc::O_EXCL) as u64;
    // SAFETY: the path ends in zero; the descriptor closed is the one opened.
    let raw = unsafe {
        let raw = syscall4(libc::SYS_openat, here, path, flags, 0o600);
        if raw >= 0 {
            syscall1(libc::SYS_close, raw as u64);
            syscall2(libc::SYS_unlink, path, 0)
        } else {
            raw
        }
    };
    result(raw).map(|_| ()).map_err(|error| format!("/tmp/gbf: {error}"))
}

/// A file in memory.
#[derive(Debug)]
pub struct Pages(File);

impl Pages {
    /// Makes a file of `pages` zeroed pages.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn new(pages: u64) -> Result<Self, String> {
        let text = |error: io::Error| format!("memfd_create: {error}");
        // SAFETY: the name ends in zero.
        let fd =
            result(unsafe { syscall2(libc::SYS_memfd_create, c"guest-bench".as_ptr() as u64, 0) })
                .map_err(text)?;
        // SAFETY: the kernel made the descriptor just now.
        let file = unsafe { File::from_raw_fd(fd as i32) };
        file.set_len(pages * super::memory::PAGE).map_err(text)?;
        Ok(Self(file))
    }

    /// Maps the first page, reads and unmaps it.
    #[inline(always)]
    pub fn map_read_unmap(&self) {
        map_file_read_unmap(self.0.as_raw_fd());
    }
}
