//! Maps, touches and changes memory that holds nothing.
#![expect(unsafe_code, reason = "mmap and its kin, and stores to what they map")]

use super::result;
use core::arch::asm;
use linux_guest::syscall::{syscall2, syscall3, syscall6};
use std::{io, ptr};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of a huge page.
const HUGE: u64 = 2 << 20;
/// Mappings without a file have this in its place.
const NO_FILE: u64 = u64::MAX;

const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const PRIVATE: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;

/// What may be done with a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads.
    Read,
    /// Reads and writes.
    Write,
}

#[inline(always)]
fn map(bytes: u64, access: u64, flags: u64, file: u64) -> i64 {
    // SAFETY: the kernel picks an unused place.
    unsafe { syscall6(libc::SYS_mmap, 0, bytes, access, flags, file, 0) }
}

/// Maps one page of zeroes, writes to it and unmaps it.
#[inline(always)]
pub fn map_touch_unmap() {
    let place = map(PAGE, READ_WRITE, PRIVATE, NO_FILE) as u64;
    // SAFETY: the page was mapped just now (a failure would end the process here) and nobody else
    // knows of it.
    unsafe {
        ptr::with_exposed_provenance_mut::<u8>(place as usize).write_volatile(1);
        syscall2(libc::SYS_munmap, place, PAGE);
    }
}

/// Maps a page of a file, reads from it and unmaps it.
#[inline(always)]
pub fn map_file_read_unmap(file: i32) {
    let flags = libc::MAP_SHARED as u64;
    let place = map(PAGE, libc::PROT_READ as u64, flags, file as u64) as u64;
    // SAFETY: as in `map_touch_unmap`; the file has this page.
    unsafe {
        ptr::with_exposed_provenance::<u8>(place as usize).read_volatile();
        syscall2(libc::SYS_munmap, place, PAGE);
    }
}

/// Makes sure that small mappings made from now on have a neighbour in their 2 MiB of addresses, as
/// they have in ordinary programs: otherwise each pays for a page table that comes and goes.
///
/// # Errors
/// The kernel's.
pub fn settle() -> io::Result<()> {
    /// Room below the neighbour, where the kernel puts the next mappings.
    const ROOM: u64 = 64 * PAGE;
    // Shared, so that no later mapping is merged with it.
    let flags = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u64;
    let mut place = result(map(PAGE, READ_WRITE, flags, NO_FILE))?;
    let below = place % HUGE;
    if below < ROOM {
        // One that reaches a page into the 2 MiB below.
        // SAFETY: the page was mapped just now and holds nothing.
        unsafe { syscall2(libc::SYS_munmap, place, PAGE) };
        place = result(map(below + 2 * PAGE, READ_WRITE, flags, NO_FILE))?;
    }
    // SAFETY: the page was mapped just now and stays.
    unsafe { ptr::with_exposed_provenance_mut::<u8>(place as usize).write_volatile(1) };
    Ok(())
}

/// Pages of zeroes, never huge. Empty after [`Region::unmap`].
#[derive(Debug)]
pub struct Region {
    start: u64,
    pages: u64,
}

impl Region {
    /// Maps `pages` pages; none is touched.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(pages: u64) -> io::Result<Self> {
        let flags = PRIVATE | libc::MAP_NORESERVE as u64;
        let start = result(map(pages * PAGE, READ_WRITE, flags, NO_FILE))?;
        let advice = libc::MADV_NOHUGEPAGE as u64;
        // A kernel without huge pages refuses, and need not be asked.
        // SAFETY: the region is ours.
        let _ = unsafe { syscall3(libc::SYS_madvise, start, pages * PAGE, advice) };
        Ok(Self { start, pages })
    }

    /// Address of the first byte.
    pub fn address(&self) -> u64 {
        self.start
    }

    /// Writes to every page.
    #[inline(always)]
    pub fn touch_all(&self) {
        self.touch(self.pages);
    }

    /// Writes to the first `pages` pages.
    #[inline(always)]
    pub fn touch(&self, pages: u64) {
        let end = self.start + pages.min(self.pages) * PAGE;
        let mut place = self.start;
        while place < end {
            // SAFETY: within the region, which is mapped; a handler makes it writable where it is
            // not.
            unsafe { ptr::with_exposed_provenance_mut::<u8>(place as usize).write_volatile(1) };
            place += PAGE;
        }
    }

    /// Writes to the first page.
    #[inline(always)]
    pub fn touch_first(&self) {
        self.touch(1);
    }

    /// Drops the content.
    #[inline(always)]
    pub fn discard(&self) {
        let advice = libc::MADV_DONTNEED as u64;
        // SAFETY: the region is ours and holds nothing.
        unsafe { syscall3(libc::SYS_madvise, self.start, self.pages * PAGE, advice) };
    }

    /// Changes what may be done.
    #[inline(always)]
    pub fn protect(&self, access: Access) {
        let bits = match access {
            Access::Read => libc::PROT_READ as u64,
            Access::Write => READ_WRITE,
        };
        // SAFETY: the region is ours and holds nothing.
        unsafe { syscall3(libc::SYS_mprotect, self.start, self.pages * PAGE, bits) };
    }

    /// Unmaps the region.
    #[inline(always)]
    pub fn unmap(&mut self) {
        if self.pages > 0 {
            // SAFETY: the region is ours and holds nothing.
            unsafe { syscall2(libc::SYS_munmap, self.start, self.pages * PAGE) };
            self.pages = 0;
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.unmap();
    }
}

/// Whether large pages are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Never.
    Never,
    /// If the kernel has them.
    Wanted,
}

/// 64 MiB of cache lines, each naming the next one to visit. Lives as long as the process.
#[derive(Debug)]
pub struct Chain {
    start: u64,
    /// Word that the walk has come to.
    position: u64,
}

impl Chain {
    /// Cache lines.
    pub const LINES: u32 = 1 << 20;
    const LINE: u64 = 64;

    /// Makes a chain in which line `i` is followed by line `order[i]`.
    ///
    /// # Errors
    /// The kernel's; or `order` does not name one follower per line.
    pub fn new(pages: HugePages, order: &[u32]) -> io::Result<Self> {
        let valid = order.len() == Self::LINES as usize;
        if !valid || order.iter().any(|line| *line >= Self::LINES) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = u64::from(Self::LINES) * Self::LINE;
        let place = result(map(bytes + HUGE, READ_WRITE, PRIVATE, NO_FILE))?;
        let start = place.next_multiple_of(HUGE);
        let advice = match pages {
            HugePages::Never => libc::MADV_NOHUGEPAGE,
            HugePages::Wanted => libc::MADV_HUGEPAGE,
        };
        // SAFETY: the range is ours. A kernel without huge pages refuses, which changes nothing.
        let _ = unsafe { syscall3(libc::SYS_madvise, start, bytes, advice as u64) };
        for (line, next) in (0_u64..).zip(order) {
            let place = (start + line * Self::LINE) as usize;
            // SAFETY: `line` is below LINES, so the word lies in the mapping.
            unsafe { ptr::with_exposed_provenance_mut::<u64>(place).write(u64::from(*next) * 8) };
        }
        Ok(Self { start, position: 0 })
    }

    /// Follows `n` links (at least one): address, load, and a loop of three instructions.
    #[inline(always)]
    pub fn follow(&mut self, n: u64) {
        // SAFETY: every word of the chain names another word of it.
        unsafe {
            asm!(
                "2:",
                "lea {place}, [{start} + {position} * 8]",
                "mov {position}, [{place}]",
                "add {i}, 1",
                "cmp {i}, {n}",
                "jne 2b",
                place = out(reg) _,
                start = in(reg) self.start,
                position = inout(reg) self.position,
                i = inout(reg) 0_u64 => _,
                n = in(reg) n.max(1),
                options(nostack, readonly),
            );
        }
    }
}
