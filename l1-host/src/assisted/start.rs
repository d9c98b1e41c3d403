//! The first instruction of a Linux kernel: registers, descriptors, page tables, command line, as its
//! 64-bit boot protocol asks for.
//! May: nothing.

use super::{layout, linux};
use alloc::{string::String, vec::Vec};
use pv_abi::l0::regs::{Gprs, Segment, Special, Table, attr, gpr};

/// Selectors that the boot protocol asks for.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

/// Bytes of the descriptors, for [`layout::GDT`].
pub const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// The user's command line with the console that this machine has in place of the PV one, and the way to
/// restart it: on a hardware-reduced machine, Linux would look for EFI, and then for a BIOS.
#[must_use]
pub fn command_line(given: &str) -> String {
    let words = given.split(' ').map(|word| match word.strip_prefix("console=hvc0") {
        Some(rest) if rest.is_empty() || rest.starts_with(',') => "console=ttyS0",
        _ => word,
    });
    let mut line = words.collect::<Vec<_>>().join(" ");
    if !given.split(' ').any(|word| word.starts_with("reboot=")) {
        line.push_str(" reboot=acpi");
    }
    line
}

/// Page tables for [`layout::TABLES`], which map the first [`layout::MAPPED`] bytes one to one, by
/// 2 MiB pages.
#[must_use]
pub fn page_tables() -> Vec<u64> {
    const TABLE: u64 = 0x3;
    const LARGE: u64 = 0x83;
    const ENTRIES: usize = 512;
    let (upper, lower) = (layout::TABLES + 0x1000, layout::TABLES + 0x2000);
    let directories = layout::MAPPED >> 30;
    let mut entries = Vec::with_capacity((2 + directories as usize) * ENTRIES);
    entries.push(upper | TABLE);
    entries.resize(ENTRIES, 0);
    entries.extend((0..directories).map(|directory| (lower + directory * 0x1000) | TABLE));
    entries.resize(2 * ENTRIES, 0);
    entries.extend((0..layout::MAPPED >> 21).map(|page| page << 21 | LARGE));
    entries
}

/// General registers: `rip` is the kernel's entry point.
#[must_use]
pub fn gprs(rip: u64) -> Gprs {
    let mut gprs = Gprs { rip, rflags: 2, ..Gprs::default() };
    gprs.gpr[gpr::RSI] = linux::ARGUMENT;
    gprs
}

/// 64-bit mode on [`page_tables`]; the rest is as in `before`.
#[must_use]
pub fn special(before: &Special) -> Special {
    const CR0: u64 = 1 << 31 | 1 << 5 | 1 << 4 | 1;
    const CR4_PAE: u64 = 1 << 5;
    const EFER: u64 = 1 << 10 | 1 << 8;
    const BUSY_TSS: u16 = 0xb;
    const LDT: u16 = 0x2;
    let flat = |selector, attributes| Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes: attributes | attr::PRESENT | attr::GRANULARITY | attr::CODE_OR_DATA,
    };
    let data = flat(DATA, 3 | attr::DEFAULT_BIG);
    let system =
        |kind| Segment { limit: 0xffff, attributes: kind | attr::PRESENT, ..Segment::default() };
    Special {
        cs: flat(CODE, 0xb | attr::LONG),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: system(BUSY_TSS),
        ldt: system(LDT),
        gdt: Table { base: layout::GDT, limit: size_of_val(&DESCRIPTORS) as u64 - 1 },
        idt: Table::default(),
        cr0: CR0,
        cr2: 0,
        cr3: layout::TABLES,
        cr4: CR4_PAE,
        cr8: 0,
        efer: EFER,
        ..*before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_the_one_there_is() {
        assert_eq!(command_line("a console=hvc0 b"), "a console=ttyS0 b reboot=acpi");
        assert_eq!(command_line("console=hvc0,9600 reboot=t"), "console=ttyS0 reboot=t");
        assert_eq!(command_line("console=hvc01"), "console=hvc01 reboot=acpi");
    }

    #[test]
    fn addresses_are_mapped_to_themselves() {
        let tables = page_tables();
        let entry = |table: u64, index: u64| {
            let at = (table & !0xfff) - layout::TABLES + index * 8;
            tables[(at / 8) as usize]
        };
        for address in [0, 0x12_3456, 1 << 30, (1 << 31) + 5, layout::MAPPED - 1] {
            let upper = entry(entry(layout::TABLES, 0), address >> 30);
            let large = entry(upper, address >> 21 & 0x1ff);
            assert_eq!((large & 0xfff, large & !0xfff), (0x83, address >> 21 << 21));
        }
        assert_eq!(tables.iter().filter(|entry| **entry != 0).count(), 1 + 4 + 2048);
        assert!(layout::TABLES + 8 * tables.len() as u64 <= layout::CMDLINE);
    }
}
