//! Tells native guests from stock kernels and refuses files that can be neither.
//! May: nothing. Input: a file the user named; any bytes.
//!
//! A stock kernel is parsed by the shim inside the guest. Here only what is cheap to see is
//! refused early, so that the reason comes in a second and not from a dead guest.

use crate::elf::{Address, Elf, Program};
use anyhow::{Result, bail, ensure};
use pv_abi::ext;

/// A kernel file, by the way it is started.
#[derive(Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Runs under the shim.
    Stock,
    /// Speaks the native ABI.
    Native(Program),
}

impl Kernel {
    /// Looks at the content of a kernel file.
    ///
    /// # Errors
    /// Says why it cannot be a kernel for a guest; begins with a verb, to follow the file's name.
    pub fn of(data: &[u8]) -> Result<Self> {
        if data.starts_with(b"\x7fELF") {
            let elf = Elf::parse(data)?;
            let version = elf.native_abi()?;
            ensure!(
                version.is_some() || !elf.is_dynamic(),
                "is a program for an operating system; name an x86-64 kernel (vmlinuz, vmlinux or a native \
                 ELF image)"
            );
            let Some(version) = version else { return Ok(Self::Stock) };
            ensure!(
                ext::is_known(version),
                "speaks native ABI {}, this version of Roost {}: rebuild one of them",
                version >> 16,
                ext::VERSION >> 16
            );
            return Ok(Self::Native(elf.program(Address::Physical)?));
        }
        if let Some(kind) = no_kernel(data) {
            bail!("is {kind}; name an x86-64 kernel (vmlinuz, vmlinux or a native ELF image)");
        }
        Ok(Self::Stock)
    }
}

/// Names what a file is that is surely no kernel.
fn no_kernel(data: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, magic: &[u8]| {
        data.get(offset..).is_some_and(|tail| tail.starts_with(magic))
    };
    // Documentation/arch/x86/boot.rst: magic at 0x202, version at 0x206, xloadflags at 0x236.
    if at(0x202, b"HdrS") {
        let version = u16::from_le_bytes([*data.get(0x206)?, *data.get(0x207)?]);
        let runs_64_bit = data.get(0x236).is_some_and(|flags| flags & 1 != 0);
        return (version >= 0x20c && !runs_64_bit).then_some("a 32-bit Linux kernel");
    }
    match data {
        _ if at(56, b"ARM\x64") => Some("a Linux kernel for ARM64"),
        _ if at(0, b"07070") => Some("a cpio archive (an initrd?)"),
        _ if at(0, b"!<arch>\n") => Some("an archive (a package to unpack?)"),
        _ if at(0, b"#!") => Some("a script"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_elf::Sample;

    fn reason(data: &[u8]) -> String {
        Kernel::of(data).unwrap_err().to_string()
    }

    fn bzimage(version: u16, flags: u8) -> Vec<u8> {
        let mut data = vec![0; 0x300];
        data[0x202..0x206].copy_from_slice(b"HdrS");
        data[0x206..0x208].copy_from_slice(&version.to_le_bytes());
        data[0x236] = flags;
        data
    }

    #[test]
    fn an_elf_with_our_note_is_native() {
        let native =
            Sample { note: Some((b"Roost", 1, ext::VERSION)), ..Sample::default() }.build();
        let Kernel::Native(program) = Kernel::of(&native).unwrap() else { panic!("not native") };
        assert_eq!(program.entry, 0x10_0000);
        assert_eq!(program.pieces.len(), 1);
        assert_eq!(Kernel::of(&Sample::default().build()).unwrap(), Kernel::Stock);
    }

    #[test]
    fn another_abi_is_refused() {
        let version = ext::VERSION + (1 << 16);
        let data = Sample { note: Some((b"Roost", 1, version)), ..Sample::default() }.build();
        assert!(reason(&data).starts_with("speaks native ABI 2, this version of Roost 1"));
    }

    #[test]
    fn unknown_bytes_are_left_to_the_shim() {
        for data in [&b"garbage"[..], &[0; 4096], &bzimage(0x20f, 1), &bzimage(0x20b, 0)] {
            assert_eq!(Kernel::of(data).unwrap(), Kernel::Stock);
        }
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        assert!(reason(&bzimage(0x20f, 0)).contains("32-bit Linux"));
        assert!(reason(b"070701000").contains("cpio"));
        assert!(reason(b"!<arch>\ndebian-binary").contains("package"));
        assert!(reason(b"#!/bin/sh").contains("script"));
        let mut arm = vec![0; 64];
        arm[56..60].copy_from_slice(b"ARM\x64");
        assert!(reason(&arm).contains("ARM64"));
        assert!(reason(b"\x7fELF\x01").contains("32-bit"));
        // This test is one.
        let program = std::fs::read("/proc/self/exe").unwrap();
        assert!(reason(&program).contains("program for an operating system"));
    }
}
