//! Maps guest memory into this process and gives it to KVM.
#![expect(unsafe_code, reason = "mappings, and addresses that KVM is told")]

use crate::{hole::Hole, ram::Ram};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use std::{ffi::c_void, fs::File, io, ptr, sync::Arc};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

const PAGE: u64 = 4096;
/// KVM maps large pages where addresses are equal modulo this.
const LARGE: u64 = 2 << 20;

/// Address space that stands for a region of an L2: pieces of L1's memory file are mapped into it,
/// and where nothing is mapped nothing can be accessed. Nobody but KVM ever accesses it.
#[derive(Debug)]
pub struct Alias {
    hole: Hole,
    /// Address of its first page.
    start: u64,
    pages: u64,
    file: Arc<File>,
}

/// What L2 may do with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Read, execute and write.
    Allowed,
    /// Read and execute.
    Refused,
}

impl Alias {
    /// Finds a place for `pages` of a region at `gpa`, to be filled from `file`.
    ///
    /// # Errors
    /// There is none, or the system's.
    pub fn reserve(gpa: u64, pages: u64, file: Arc<File>) -> io::Result<Self> {
        let bytes = pages.checked_mul(PAGE).and_then(|bytes| bytes.checked_add(LARGE));
        let bytes = bytes.filter(|bytes| usize::try_from(*bytes).is_ok());
        let hole = Hole::take(bytes.ok_or(io::ErrorKind::OutOfMemory)?, LARGE)?;
        let start = hole.range().start + gpa % LARGE;
        let this = Self { hole, start, pages, file };
        // The whole hole is empty, or this fails.
        let (at, len) = this.whole();
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE | MapFlags::NORESERVE;
        // SAFETY: replaces nothing.
        unsafe { mmap_anonymous(at, len, ProtFlags::empty(), flags)? };
        // SAFETY: what was just mapped.
        unsafe { munmap(at, len)? };
        Ok(this)
    }

    /// Maps `pages` from page `page` of the region, where nothing is mapped, to the file's `offset`.
    ///
    /// # Errors
    /// The range is not in the region, or the system's.
    pub fn map(&self, page: u64, pages: u64, offset: u64, writes: Writes) -> io::Result<()> {
        let (at, len) = self.range(page, pages)?;
        let flags = MapFlags::SHARED | MapFlags::FIXED_NOREPLACE | MapFlags::NORESERVE;
        // SAFETY: replaces nothing, and is inside our hole.
        unsafe { mmap(at, len, protection(writes), flags, &*self.file, offset)? };
        Ok(())
    }

    /// Takes pages away, of which not all need be mapped. When it returns, no vCPU can use them: the
    /// kernel tells KVM, which waits until every CPU has flushed.
    ///
    /// # Errors
    /// The range is not in the region, or the system's.
    pub fn unmap(&self, page: u64, pages: u64) -> io::Result<()> {
        let (at, len) = self.range(page, pages)?;
        // SAFETY: the range is inside our hole, to which there are no references.
        unsafe { munmap(at, len)? };
        Ok(())
    }

    /// Changes what may be done with mapped pages; as final as [`Self::unmap`].
    ///
    /// # Errors
    /// The range is not in the region, or the system's.
    pub fn protect(&self, page: u64, pages: u64, writes: Writes) -> io::Result<()> {
        let (at, len) = self.range(page, pages)?;
        let flags = match writes {
            Writes::Allowed => MprotectFlags::READ | MprotectFlags::WRITE,
            Writes::Refused => MprotectFlags::READ,
        };
        // SAFETY: as for `unmap`.
        unsafe { mprotect(at, len, flags)? };
        Ok(())
    }

    /// Where the region begins in this process.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Pages of the region.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    fn range(&self, page: u64, pages: u64) -> io::Result<(*mut c_void, usize)> {
        let end = page.checked_add(pages).filter(|end| *end <= self.pages && pages > 0);
        if end.is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let at = self.start + page * PAGE;
        Ok((ptr::without_provenance_mut(at as usize), (pages * PAGE) as usize))
    }

    fn whole(&self) -> (*mut c_void, usize) {
        let hole = self.hole.range();
        (ptr::without_provenance_mut(hole.start as usize), (hole.end - hole.start) as usize)
    }
}

const fn protection(writes: Writes) -> ProtFlags {
    match writes {
        Writes::Allowed => ProtFlags::READ.union(ProtFlags::WRITE),
        Writes::Refused => ProtFlags::READ,
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        let (at, len) = self.whole();
        // SAFETY: the hole is ours until the end of this, and a KVM VM that knows its address has a
        // reference to us. It cannot fail where whole mappings go.
        let _ = unsafe { munmap(at, len) };
    }
}

/// Makes `alias` the memory of `vm` at `gpa`. The caller keeps `alias` as long as the VM: should it
/// go first, KVM finds nothing there, or what this process has mapped since.
fn set_slot(vm: &VmFd, slot: u32, gpa: u64, alias: &Alias, flags: u32) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: alias.pages * PAGE,
        userspace_addr: alias.start,
    };
    // SAFETY: the range is inside the hole of `alias`, which `VmWithAliases` keeps.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// A VM of KVM whose memory is aliases.
#[derive(Debug)]
pub struct VmWithAliases {
    // Dropped first.
    vm: Arc<VmFd>,
    aliases: Vec<(u64, Arc<Alias>)>,
}

impl VmWithAliases {
    /// Makes each alias the memory of `vm` at its L2 address. Vcpus of the VM must be dropped
    /// before the result.
    ///
    /// # Errors
    /// KVM's.
    pub fn new(vm: VmFd, aliases: Vec<(u64, Arc<Alias>)>) -> io::Result<Self> {
        let this = Self { vm: Arc::new(vm), aliases };
        this.set_flags(0)?;
        Ok(this)
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// Turns KVM's log of writes on or off.
    ///
    /// # Errors
    /// KVM's.
    pub fn log_writes(&self, on: bool) -> io::Result<()> {
        self.set_flags(if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }

    /// Pages of the region in slot `slot`.
    #[must_use]
    pub fn pages(&self, slot: usize) -> Option<u64> {
        self.aliases.get(slot).map(|(_, alias)| alias.pages)
    }

    fn set_flags(&self, flags: u32) -> io::Result<()> {
        for (slot, (gpa, alias)) in self.aliases.iter().enumerate() {
            set_slot(&self.vm, slot as u32, *gpa, alias, flags)?;
        }
        Ok(())
    }
}

/// A VM of KVM together with the memory that it maps.
#[derive(Debug)]
pub struct VmWithRam {
    // Dropped first: KVM lets go of the memory before it is unmapped.
    vm: VmFd,
    ram: Arc<Ram>,
}

impl VmWithRam {
    /// Gives all of `ram` to `vm`, which must have no memory yet.
    ///
    /// # Errors
    /// KVM's.
    pub fn new(vm: VmFd, ram: Arc<Ram>) -> Result<Self, kvm_ioctls::Error> {
        for (slot, region) in ram.memory().iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping is owned by `ram`, which lives as long as the VM does in the
            // result; it is guest memory, to which nobody holds references.
            unsafe { vm.set_user_memory_region(slot)? };
        }
        Ok(Self { vm, ram })
    }

    /// The VM.
    #[must_use]
    pub const fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// Its memory.
    #[must_use]
    pub const fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    /// What `/proc` says of the page at `at`: its permissions and its offset in the file.
    fn page_at(at: u64) -> Option<(String, u64)> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let find = |line: &str| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            let (start, end) = (number(start)?, number(end)?);
            let (allowed, offset) = (words.next()?.to_owned(), number(words.next()?)?);
            (start..end).contains(&at).then(|| (allowed, offset + (at - start)))
        };
        maps.lines().find_map(find)
    }

    #[test]
    fn pages_of_the_file_come_and_go() {
        let ram = Ram::new(16).unwrap();
        ram.memory().write_slice(b"x", GuestAddress(0x3000)).unwrap();
        let gpa = 0x4020_1000;
        let alias = Alias::reserve(gpa, 8, Arc::clone(ram.file())).unwrap();
        assert_eq!((alias.start() - gpa) % LARGE, 0);
        let page = |n: u64| page_at(alias.start() + n * PAGE);
        let is = |access: &str, offset| Some((access.to_owned(), offset));
        assert_eq!(page(0), None);
        alias.map(2, 2, 0x3000, Writes::Allowed).unwrap();
        assert_eq!([page(1), page(3), page(4)], [None, is("rw-s", 0x4000), None]);
        assert!(alias.map(1, 2, 0, Writes::Allowed).is_err(), "nothing is replaced");
        alias.protect(3, 1, Writes::Refused).unwrap();
        assert_eq!([page(2), page(3)], [is("rw-s", 0x3000), is("r--s", 0x4000)]);
        alias.unmap(0, 3).unwrap();
        assert_eq!([page(2), page(3)], [None, is("r--s", 0x4000)]);
        let start = alias.start();
        drop(alias);
        assert_eq!(page_at(start + 3 * PAGE), None);
    }

    #[test]
    fn nothing_outside_the_region_is_touched() {
        let ram = Ram::new(16).unwrap();
        let alias = Alias::reserve(0, 8, Arc::clone(ram.file())).unwrap();
        for (page, pages) in [(8, 1), (7, 2), (0, 0), (u64::MAX, 2), (0, u64::MAX)] {
            assert!(alias.map(page, pages, 0, Writes::Allowed).is_err());
            assert!(alias.unmap(page, pages).is_err());
            assert!(alias.protect(page, pages, Writes::Allowed).is_err());
        }
        assert!(Alias::reserve(0, u64::MAX / PAGE, Arc::clone(ram.file())).is_err());
    }
}
