//! Starts a Linux kernel by its 64-bit boot protocol (Documentation/arch/x86/boot.rst).
//! May: nothing. Input: the kernel file, any bytes; every offset is checked.
//!
//! L1 reads the setup header and copies the rest: the kernel unpacks itself, inside the guest.

use super::layout::{self, ZERO_PAGE};
use core::{fmt, ops::Range};
use pv_abi::ext::Span;

/// Offsets in the file, and the same in the boot parameters.
mod header {
    pub const START: usize = 0x1f1;
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const JUMP: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const LOADER: usize = 0x210;
    pub const RAMDISK: usize = 0x218;
    pub const RAMDISK_LEN: usize = 0x21c;
    pub const CMDLINE: usize = 0x228;
    pub const INITRD_MAX: usize = 0x22c;
    pub const ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_MAX: usize = 0x238;
    pub const SETUP_DATA: usize = 0x250;
    pub const PREFERRED: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    /// The first byte that this version of the protocol does not name.
    pub const END: usize = 0x268;
}

/// Offsets in the boot parameters only.
mod params {
    pub const RSDP: usize = 0x70;
    pub const RAMDISK_HIGH: usize = 0xc0;
    pub const RAMDISK_LEN_HIGH: usize = 0xc4;
    pub const E820_COUNT: usize = 0x1e8;
    pub const E820: usize = 0x2d0;
    pub const E820_ENTRY: usize = 20;
}

/// The 64-bit entry point, from where the kernel was loaded.
pub const ENTRY: u64 = 0x200;
/// Protocol 2.12: the first with a 64-bit entry point.
const LEAST_VERSION: u16 = 0x20c;
const HAS_64_BIT_ENTRY: u16 = 1;
const ABOVE_4G: u16 = 2;
/// "Another loader", which needs no number assigned.
const UNDEFINED_LOADER: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Why a kernel cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No setup header.
    NotLinux,
    /// Too old for, or without, the 64-bit entry point.
    No64Bit,
    /// The file ends before what its header says.
    Truncated,
    /// Kernel, ramdisk and command line need more: bytes.
    TooSmall(u64),
    /// The command line is longer than the kernel takes: bytes it takes.
    Cmdline(u64),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLinux => write!(
                f,
                "its kernel is no bzImage, which the assisted backend needs: use --backend shadow"
            ),
            Self::No64Bit => {
                write!(f, "its kernel has no 64-bit entry point: use an x86-64 kernel from 3.8 on")
            }
            Self::Truncated => write!(f, "its kernel file is cut short: fetch it again"),
            Self::TooSmall(least) => write!(
                f,
                "its memory is too small for its files: it needs at least {} MiB",
                (least >> 20) + 1
            ),
            Self::Cmdline(most) => {
                write!(f, "its command line is too long: the kernel takes {} bytes", most - 1)
            }
        }
    }
}

/// A kernel file whose header has been read.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    file: &'a [u8],
    /// Where the part to load starts in the file.
    code: usize,
    header_end: usize,
}

/// Where a kernel and its files go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// First byte of the kernel.
    pub kernel: u64,
    /// The ramdisk; empty for none.
    pub initrd: Span,
}

impl<'a> Kernel<'a> {
    /// Reads the header of `file`.
    ///
    /// # Errors
    /// [`Error`] says what is wrong.
    pub fn parse(file: &'a [u8]) -> Result<Self, Error> {
        let head = file.get(..header::END).ok_or(Error::NotLinux)?;
        if &head[header::MAGIC..][..4] != b"HdrS" || u16_at(head, header::BOOT_FLAG) != 0xaa55 {
            return Err(Error::NotLinux);
        }
        let old = u16_at(head, header::VERSION) < LEAST_VERSION;
        if old || u16_at(head, header::XLOADFLAGS) & HAS_64_BIT_ENTRY == 0 {
            return Err(Error::No64Bit);
        }
        // Zero means four, for reasons of the last century.
        let sectors = match head[header::SETUP_SECTS] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let code = 512 * (1 + sectors);
        if file.len() <= code {
            return Err(Error::Truncated);
        }
        // The second byte of a jump over the header says where that ends.
        let header_end = header::MAGIC + usize::from(head[header::JUMP]);
        Ok(Self { file, code, header_end: header_end.clamp(header::END, header::START + 0x8f) })
    }

    /// What is to be copied to where the kernel goes.
    #[must_use]
    pub fn code(&self) -> &'a [u8] {
        &self.file[self.code..]
    }

    /// Finds places for the kernel and a ramdisk of `initrd` bytes in `memory` bytes.
    ///
    /// # Errors
    /// [`Error::TooSmall`], [`Error::Cmdline`].
    pub fn place(&self, memory: u64, initrd: u64, cmdline: u64) -> Result<Placement, Error> {
        let most = u64::from(u32_at(self.file, header::CMDLINE_MAX)) + 1;
        if cmdline + 1 > most.min(layout::CMDLINE_BYTES) {
            return Err(Error::Cmdline(most.min(layout::CMDLINE_BYTES)));
        }
        let needs = u64::from(u32_at(self.file, header::INIT_SIZE)).max(self.code().len() as u64);
        let least = Error::TooSmall(layout::KERNEL + needs + initrd);
        let low = layout::ram(memory).first().map_or(0, |piece| piece.end);
        let preferred = u64_at(self.file, header::PREFERRED);
        let fits =
            |at: u64| at >= layout::KERNEL && at.checked_add(needs).is_some_and(|e| e <= low);
        let alignment = u64::from(u32_at(self.file, header::ALIGNMENT)).max(1);
        let kernel = if fits(preferred) {
            preferred
        } else if self.file[header::RELOCATABLE] != 0 {
            layout::KERNEL.next_multiple_of(alignment)
        } else {
            return Err(least);
        };
        if !fits(kernel) {
            return Err(least);
        }
        let top = low.min(self.highest_initrd());
        let start = top.checked_sub(initrd).map(|start| start & !0xfff);
        match start.filter(|&start| initrd == 0 || start >= kernel + needs) {
            Some(gpa) => Ok(Placement { kernel, initrd: Span { gpa, len: initrd } }),
            None => Err(least),
        }
    }

    /// The first address that the ramdisk may not take.
    fn highest_initrd(&self) -> u64 {
        if u16_at(self.file, header::XLOADFLAGS) & ABOVE_4G != 0 {
            return u64::MAX;
        }
        u64::from(u32_at(self.file, header::INITRD_MAX)) + 1
    }

    /// The page of boot parameters, for [`layout::ZERO_PAGE`]. `rsdp` is where the firmware tables
    /// start.
    #[must_use]
    pub fn boot_parameters(&self, place: &Placement, memory: u64, rsdp: u64) -> [u8; 4096] {
        let mut page = [0; 4096];
        let end = self.header_end.min(self.file.len());
        page[header::START..end].copy_from_slice(&self.file[header::START..end]);
        page[header::LOADER] = UNDEFINED_LOADER;
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(header::RAMDISK, &(place.initrd.gpa as u32).to_le_bytes());
        put(header::RAMDISK_LEN, &(place.initrd.len as u32).to_le_bytes());
        put(params::RAMDISK_HIGH, &((place.initrd.gpa >> 32) as u32).to_le_bytes());
        put(params::RAMDISK_LEN_HIGH, &((place.initrd.len >> 32) as u32).to_le_bytes());
        put(header::CMDLINE, &(layout::CMDLINE as u32).to_le_bytes());
        put(header::SETUP_DATA, &0u64.to_le_bytes());
        put(params::RSDP, &rsdp.to_le_bytes());
        let mut count = 0;
        let mut entry = |range: Range<u64>, kind: u32| {
            let at = params::E820 + count * params::E820_ENTRY;
            put(at, &range.start.to_le_bytes());
            put(at + 8, &(range.end - range.start).to_le_bytes());
            put(at + 16, &kind.to_le_bytes());
            count += 1;
        };
        for range in layout::usable(memory) {
            entry(range, E820_RAM);
        }
        entry(layout::ACPI, E820_RESERVED);
        page[params::E820_COUNT] = count as u8;
        page
    }
}

/// The state of the first instruction, beside what is set for any guest: RSI.
pub const ARGUMENT: u64 = ZERO_PAGE;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};

    const MIB: u64 = 1 << 20;

    /// A relocatable kernel that prefers 16 MiB and needs 8 there.
    fn sample() -> Vec<u8> {
        let mut file = vec![0; 3 * 512 + 0x1000];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(header::SETUP_SECTS, &[2]);
        put(header::BOOT_FLAG, &[0x55, 0xaa]);
        put(header::JUMP, &[0x6a]);
        put(header::MAGIC, b"HdrS");
        put(header::VERSION, &0x20fu16.to_le_bytes());
        put(header::INITRD_MAX, &0x7fff_ffffu32.to_le_bytes());
        put(header::ALIGNMENT, &(2 * MIB as u32).to_le_bytes());
        put(header::RELOCATABLE, &[1]);
        put(header::XLOADFLAGS, &1u16.to_le_bytes());
        put(header::CMDLINE_MAX, &2047u32.to_le_bytes());
        put(header::PREFERRED, &(16 * MIB).to_le_bytes());
        put(header::INIT_SIZE, &(8 * MIB as u32).to_le_bytes());
        put(3 * 512, b"code");
        file
    }

    #[test]
    fn files_go_where_they_fit() {
        let file = sample();
        let kernel = Kernel::parse(&file).unwrap();
        assert!(kernel.code().starts_with(b"code") && kernel.code().len() == 0x1000);
        let place = kernel.place(64 * MIB, 5000, 10).unwrap();
        let initrd = Span { gpa: 64 * MIB - 8192, len: 5000 };
        assert_eq!(place, Placement { kernel: 16 * MIB, initrd });
        assert_eq!(kernel.place(16 * MIB, 0, 10).unwrap().kernel, 2 * MIB, "moved down");
        let low = kernel.place(8 << 30, 4096, 10).unwrap().initrd;
        assert_eq!(low.gpa, (2 << 30) - 4096, "below what the kernel takes, and below the hole");
        assert!(matches!(kernel.place(9 * MIB, 0, 10), Err(Error::TooSmall(_))));
        assert!(matches!(kernel.place(24 * MIB, MIB, 10), Err(Error::TooSmall(_))));
        assert_eq!(kernel.place(64 * MIB, 0, 2048), Err(Error::Cmdline(2048)));
    }

    #[test]
    fn the_boot_parameters_name_everything() {
        let file = sample();
        let kernel = Kernel::parse(&file).unwrap();
        let memory = 5 << 30;
        let place = kernel.place(memory, 5000, 10).unwrap();
        let page = kernel.boot_parameters(&place, memory, 0xe_0000);
        assert_eq!(&page[header::MAGIC..][..4], b"HdrS");
        assert_eq!(u32_at(&page, header::RAMDISK_LEN), 5000);
        assert_eq!(u64_at(&page, params::RSDP), 0xe_0000);
        assert_eq!(page[params::E820_COUNT], 4);
        let sizes = (0..4).map(|n| u64_at(&page, params::E820 + n * params::E820_ENTRY + 8));
        assert_eq!(sizes.sum::<u64>(), memory);
        assert_eq!(page[0], 0, "what is not named is zero");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let refused = |file: &[u8]| Kernel::parse(file).map(|_| ()).unwrap_err();
        assert_eq!(refused(b"\x7fELF"), Error::NotLinux);
        assert_eq!(refused(&[0; 8192]), Error::NotLinux);
        let mut file = sample();
        file[header::XLOADFLAGS] = 0;
        assert_eq!(refused(&file), Error::No64Bit);
        let mut file = sample();
        file[header::SETUP_SECTS] = 200;
        assert_eq!(refused(&file), Error::Truncated);
    }

    #[test]
    fn wild_headers_are_survived() {
        for at in header::START..header::END {
            for value in [0, 1, 0x7f, 0xff] {
                let mut file = sample();
                file[at] = value;
                let Ok(kernel) = Kernel::parse(&file) else { continue };
                if let Ok(place) = kernel.place(64 * MIB, 4096, 10) {
                    assert!(place.kernel >= layout::KERNEL && place.kernel < 64 * MIB);
                    let _ = kernel.boot_parameters(&place, 64 * MIB, 0);
                }
            }
        }
    }
}
