//! Finds the kernel's vDSO in this process and the functions in it.
//! Input: trusted (mapped by the kernel).
#![expect(unsafe_code, reason = "the vDSO is memory that only the kernel describes")]

use anyhow::{Context, Result};
use object::{Object, ObjectSymbol, read::elf::ElfFile64};
use std::{ffi::c_void, fs, mem, slice};

/// `__vdso_clock_gettime`.
pub type ClockGettime = unsafe extern "C" fn(i32, *mut libc::timespec) -> i32;
/// `__vdso_getcpu`: CPU, node, unused.
pub type Getcpu = unsafe extern "C" fn(*mut u32, *mut u32, *mut c_void) -> i64;

/// The vDSO of this process.
#[derive(Debug)]
pub struct Vdso {
    base: usize,
    image: &'static [u8],
}

impl Vdso {
    /// Finds it through the auxiliary vector; `None` if the kernel gives none.
    ///
    /// # Errors
    /// The memory map does not hold what the auxiliary vector names.
    pub fn find() -> Result<Option<Self>> {
        // SAFETY: getauxval only reads the vector.
        let base = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
        if base == 0 {
            return Ok(None);
        }
        let maps = fs::read_to_string("/proc/self/maps").context("cannot read /proc/self/maps")?;
        let end = mapping_end(&maps, base).context("the vDSO is not in /proc/self/maps")?;
        // SAFETY: the kernel maps the vDSO readable over exactly this range, for the life of the
        // process, and nothing in the program unmaps or writes it.
        let image = unsafe { slice::from_raw_parts(base as *const u8, end - base) };
        Ok(Some(Self { base, image }))
    }

    /// Address of a function in the vDSO.
    ///
    /// # Errors
    /// The image is no ELF file or has no such symbol.
    pub fn symbol(&self, name: &str) -> Result<usize> {
        let elf = ElfFile64::<object::Endianness>::parse(self.image).context("vDSO")?;
        let found = elf.dynamic_symbols().find(|symbol| symbol.name() == Ok(name));
        let symbol = found.with_context(|| format!("the vDSO has no {name}"))?;
        Ok(self.base + symbol.address() as usize)
    }

    /// The clock function.
    ///
    /// # Errors
    /// As [`Vdso::symbol`].
    pub fn clock_gettime(&self) -> Result<ClockGettime> {
        let address = self.symbol("__vdso_clock_gettime")?;
        // SAFETY: the symbol has this type by the kernel's ABI.
        Ok(unsafe { mem::transmute::<usize, ClockGettime>(address) })
    }

    /// The CPU number function.
    ///
    /// # Errors
    /// As [`Vdso::symbol`].
    pub fn getcpu(&self) -> Result<Getcpu> {
        let address = self.symbol("__vdso_getcpu")?;
        // SAFETY: the symbol has this type by the kernel's ABI.
        Ok(unsafe { mem::transmute::<usize, Getcpu>(address) })
    }
}

/// End of the mapping that starts at `base`.
fn mapping_end(maps: &str, base: usize) -> Option<usize> {
    maps.lines().find_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let end = rest.split(' ').next()?;
        let hex = |text| usize::from_str_radix(text, 16).ok();
        (hex(start)? == base).then(|| hex(end)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_is_found_by_its_start() {
        let maps = "1000-2000 r--p 0 0:0 0 [vvar]\n2000-5000 r-xp 0 0:0 0 [vdso]\n";
        assert_eq!(mapping_end(maps, 0x2000), Some(0x5000));
        assert_eq!(mapping_end(maps, 0x3000), None);
    }

    #[test]
    fn this_machines_vdso_has_its_functions() {
        let Some(vdso) = Vdso::find().unwrap() else { return };
        assert!(vdso.symbol("__vdso_clock_gettime").unwrap() > vdso.base);
        assert!(vdso.symbol("no_such_function").is_err());
    }
}
