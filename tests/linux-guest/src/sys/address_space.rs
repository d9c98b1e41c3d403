//! Changes mappings page by page inside one reserved range of addresses.
#![expect(unsafe_code, reason = "mmap, mprotect, mremap and munmap at fixed addresses")]

use super::{
    mapping::PAGE,
    trap::{self, Trap},
};
use std::{io, ops::Range, ptr};

/// The instruction UD2.
const UD2: u64 = 0x0b0f;

/// What may be done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing; the mapping exists all the same.
    None,
    /// Reads.
    Read,
    /// Reads and writes.
    Write,
}

impl Access {
    const fn bits(self) -> i32 {
        match self {
            Self::None => libc::PROT_NONE,
            Self::Read => libc::PROT_READ,
            Self::Write => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A range of addresses, used page by page. Operations on pages that they do not fit panic: the
/// caller keeps the books too.
#[derive(Debug)]
pub struct AddressSpace {
    start: u64,
    pages: Vec<Option<Access>>,
}

impl AddressSpace {
    /// Finds a free range of `pages` pages; none of them is mapped yet.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reserve(pages: usize) -> io::Result<Self> {
        let start = map(0, pages, Access::None, 0)?;
        let mut space = Self { start, pages: vec![Some(Access::None); pages] };
        space.unmap(0..pages)?;
        Ok(space)
    }

    /// Address of a page.
    pub const fn address(&self, page: usize) -> u64 {
        self.start + (page * PAGE) as u64
    }

    /// Maps zeroed private pages over a hole.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map(&mut self, range: Range<usize>, access: Access) -> io::Result<()> {
        assert!(self.pages[range.clone()].iter().all(Option::is_none), "{range:?} is mapped");
        // Not replacing: the program's own allocator may have taken the hole.
        map(self.address(range.start), range.len(), access, libc::MAP_FIXED_NOREPLACE)?;
        self.pages[range].fill(Some(access));
        Ok(())
    }

    /// Removes mappings.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unmap(&mut self, range: Range<usize>) -> io::Result<()> {
        self.demand_mapped(&range);
        // SAFETY: these pages are ours and hold nothing of the program.
        check(unsafe { libc::munmap(self.pointer(range.start), range.len() * PAGE) })?;
        self.pages[range].fill(None);
        Ok(())
    }

    /// Changes what may be done.
    ///
    /// # Errors
    /// The kernel's.
    pub fn protect(&mut self, range: Range<usize>, access: Access) -> io::Result<()> {
        self.demand_mapped(&range);
        let bytes = range.len() * PAGE;
        // SAFETY: these pages are ours and hold nothing of the program.
        check(unsafe { libc::mprotect(self.pointer(range.start), bytes, access.bits()) })?;
        self.pages[range].fill(Some(access));
        Ok(())
    }

    /// Drops the content; the pages read as zeroes afterwards.
    ///
    /// # Errors
    /// The kernel's.
    pub fn discard(&self, range: Range<usize>) -> io::Result<()> {
        self.demand_mapped(&range);
        let bytes = range.len() * PAGE;
        // SAFETY: these pages are ours and hold nothing of the program.
        check(unsafe { libc::madvise(self.pointer(range.start), bytes, libc::MADV_DONTNEED) })
    }

    /// Moves pages of equal access to `to`, replacing what is there and leaving a hole.
    ///
    /// # Errors
    /// The kernel's.
    pub fn relocate(&mut self, range: Range<usize>, to: usize) -> io::Result<()> {
        let target = to..to + range.len();
        assert!(range.end <= to || target.end <= range.start, "{range:?} and {target:?} overlap");
        self.unmap(target)?;
        match self.move_to_hole(range.clone(), to) {
            // What looks like one run may be several mappings to the kernel, and older ones move
            // one mapping at a time.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) && range.len() > 1 => range
                .enumerate()
                .try_for_each(|(index, page)| self.move_to_hole(page..page + 1, to + index)),
            other => other,
        }
    }

    fn move_to_hole(&mut self, range: Range<usize>, to: usize) -> io::Result<()> {
        self.demand_mapped(&range);
        let target = to..to + range.len();
        assert!(self.pages[target.clone()].iter().all(Option::is_none), "{target:?} is mapped");
        let (access, bytes) = (self.pages[range.start], range.len() * PAGE);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let (from, place) = (self.pointer(range.start), self.pointer(to));
        // SAFETY: the source is ours and holds nothing of the program. The target was unmapped
        // just now or is about to be filled by the same move; the one thread that uses this
        // makes no other mapping meanwhile.
        let moved = unsafe { libc::mremap(from, bytes, bytes, flags, place) };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.pages[range].fill(None);
        self.pages[target].fill(access);
        Ok(())
    }

    /// Reads a word of a page, mapped or not.
    ///
    /// # Errors
    /// The read faulted.
    pub fn load(&self, page: usize, word: usize) -> Result<u64, Trap> {
        trap::load(self.address(page) + (word * 8) as u64)
    }

    /// Writes a word of a mapped page, writable or not.
    ///
    /// # Errors
    /// The write faulted.
    pub fn store(&mut self, page: usize, word: usize, value: u64) -> Result<(), Trap> {
        assert!(word < PAGE / 8 && self.pages[page].is_some(), "page {page} is not ours");
        // SAFETY: the page is ours and holds nothing of the program.
        unsafe { trap::store(self.address(page) + (word * 8) as u64, value) }
    }

    /// Jumps to a writable page, after writing an undefined instruction there.
    ///
    /// # Errors
    /// The write faulted.
    pub fn execute(&mut self, page: usize) -> Result<Option<Trap>, Trap> {
        self.store(page, 0, UD2)?;
        // SAFETY: the instruction faults.
        Ok(unsafe { trap::jump(self.address(page)) })
    }

    fn pointer(&self, page: usize) -> *mut libc::c_void {
        ptr::with_exposed_provenance_mut(self.address(page) as usize)
    }

    fn demand_mapped(&self, range: &Range<usize>) {
        assert!(self.pages[range.clone()].iter().all(Option::is_some), "{range:?} has a hole");
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        for page in 0..self.pages.len() {
            if self.pages[page].is_some() {
                // Nothing is left to be done about a failure.
                let _ = self.unmap(page..page + 1);
            }
        }
    }
}

/// Maps pages at `address` (0: anywhere, unless `flags` say otherwise) and returns the address.
fn map(address: u64, pages: usize, access: Access, flags: i32) -> io::Result<u64> {
    let hint = ptr::with_exposed_provenance_mut(address as usize);
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED the kernel replaces nothing.
    let place = unsafe { libc::mmap(hint, pages * PAGE, access.bits(), flags, -1, 0) };
    if place == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(place as u64) }
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
