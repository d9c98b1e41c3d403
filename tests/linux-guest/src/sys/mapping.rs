//! Maps memory that a check owns and may share with other processes.
#![expect(unsafe_code, reason = "mmap")]

use core::{ptr::NonNull, slice, sync::atomic::AtomicU64};
use std::{fs::File, io, os::fd::AsRawFd, ptr};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Who sees stores to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// This process only.
    Private,
    /// Every process that maps the same memory.
    Shared,
}

impl Sharing {
    const fn flag(self) -> i32 {
        match self {
            Self::Private => libc::MAP_PRIVATE,
            Self::Shared => libc::MAP_SHARED,
        }
    }
}

/// Readable and writable memory, as words that other processes may change at any time.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// Maps `bytes` of zeroes; `bytes` is a multiple of the page size.
    ///
    /// # Errors
    /// The kernel's.
    pub fn anonymous(bytes: usize, sharing: Sharing) -> io::Result<Self> {
        Self::new(bytes, sharing.flag() | libc::MAP_ANONYMOUS, -1)
    }

    /// Maps zeroes below 4 GiB, where a segment descriptor can point to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn below_4g(bytes: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        Self::new(bytes, flags, -1)
    }

    /// Maps the first `bytes` of `file`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_file(file: &File, bytes: usize, sharing: Sharing) -> io::Result<Self> {
        Self::new(bytes, sharing.flag(), file.as_raw_fd())
    }

    fn new(bytes: usize, flags: i32, fd: i32) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel picks an unused place.
        let place = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, fd, 0) };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(place.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, bytes })
    }

    /// Address of the first byte.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// The memory, as 8-byte words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the range is mapped readable and writable until drop, page-aligned, and any
        // content is a valid word; atomics bear changes by other processes.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast(), self.bytes / 8) }
    }

    /// Drops the content of `count` pages from page `first` on (`MADV_DONTNEED`).
    ///
    /// # Errors
    /// The kernel's; or the pages are not part of the mapping.
    pub fn discard(&self, first: usize, count: usize) -> io::Result<()> {
        let (offset, length) = (first * PAGE, count * PAGE);
        if offset + length > self.bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: within the mapping; words stay valid whatever they hold.
        let result = unsafe {
            libc::madvise(self.start.as_ptr().add(offset).cast(), length, libc::MADV_DONTNEED)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours and no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
