//! What a native guest finds when it starts: registers, memory, the boot block.

use super::{Group, Setting, check};
use crate::{
    clock, entry, extension,
    paging::{self, A, D, NX, P, PS, W},
    registers::{Equal, Registers},
    tap::{Verdict, equal, holds, skip, within},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    event::RFLAGS_FORCED,
    ext::{self, NativeBoot, window},
};

pub const GROUP: Group = Group {
    name: "start",
    setting: Setting::Anywhere,
    checks: &[
        check("registers", "ST-2", registers),
        check("image", "ST-1", image),
        check("boot_block", "ST-4 SMP-1", boot_block),
        check("version", "VER-1", version),
        check("tsc_rate", "ST-4", tsc_rate),
        check("tables", "ST-3", tables),
        check("no_firmware_tables", "DEV-4", no_firmware_tables),
    ],
};

/// RSI leads to the boot block, everything else is 0.
fn registers() -> Verdict {
    let found = entry::start();
    found.registers.equal(&Registers { rsi: NativeBoot::GPA.0, ..Registers::default() })?;
    equal("RFLAGS", found.rflags, RFLAGS_FORCED)
}

/// The image lies at its physical addresses, which are those it was linked at.
fn image() -> Verdict {
    let linked = paging::image();
    holds("above the first MiB", linked.start >= NativeBoot::LOWEST.0)?;
    let entry = entry::address();
    holds("runs where it was linked", linked.contains(&entry))?;
    equal("what was not in the file is 0", paging::last_image_word(), 0)
}

/// Magic, vCPUs, memory that is there, spans that lie in it.
fn boot_block() -> Verdict {
    let boot = entry::boot();
    equal("magic", boot.magic, NativeBoot::MAGIC)?;
    within("vCPUs", boot.vcpus.into(), 1, window::MAX_VCPUS as u64)?;
    holds("memory in whole pages", boot.memory.is_multiple_of(4096))?;
    holds("memory for the image", boot.memory >= paging::image().end)?;
    equal("command line", boot.cmdline.gpa, NativeBoot::CMDLINE.0)?;
    holds("at most a page of it", boot.cmdline.len <= 4096)?;
    let last = paging::set_area(0, (boot.memory - 4096) | P | W | A | D | NX);
    holds("the last page is RAM", paging::holds_a_word(last))?;
    holds("the module lies in memory", boot.module.end() <= boot.memory)
}

/// Boot block and leaf state one version, of the major number in the image's note.
fn version() -> Verdict {
    let version = entry::boot().version;
    equal("major version", (version >> 16).into(), (ext::VERSION >> 16).into())?;
    if !extension::present() {
        return skip("there is no leaf to compare with");
    }
    equal("the leaf's version", extension::version().into(), version.into())
}

/// The stated rate is plausible: from 1 MHz to 100 GHz, and the kilohertz of the timing leaf.
fn tsc_rate() -> Verdict {
    within("ticks per second", clock::tsc_hz(), 1_000_000, 100_000_000_000)?;
    let [khz, ..] = crate::abi::cpuid(pv_abi::cpuid::KVM_TIMING, 0);
    equal("kilohertz", khz.into(), clock::tsc_hz() / 1000)
}

/// An entry of the start-up tables, by table and index.
fn start_entry(table: u64, index: u64) -> u64 {
    let window = paging::set_area(1, table | P | W | A | D | NX);
    paging::read_word(window + 8 * index)
}

/// All memory is mapped one to one in 2 MiB pages, writable, for supervisor mode, and nothing else.
fn tables() -> Verdict {
    /// Address bits and what matters of the others.
    const SEEN: u64 = 0x000f_ffff_ffff_f000 | P | W | paging::U | PS | NX;
    let boot = entry::boot();
    let root = NativeBoot::TABLES.0;
    let pdpt = root + 0x1000;
    equal("PML4", start_entry(root, 0) & SEEN, pdpt | P | W)?;
    for index in 1..512 {
        equal("other slots", start_entry(root, index), 0)?;
    }
    for gib in 0..boot.memory.div_ceil(1 << 30) {
        let directory = pdpt + 0x1000 * (1 + gib);
        equal("PDPT", start_entry(pdpt, gib) & SEEN, directory | P | W)?;
        for index in 0..512 {
            let page = gib << 30 | index << 21;
            let expected = if page < boot.memory { page | P | W | PS } else { 0 };
            equal("directory", start_entry(directory, index) & SEEN, expected)?;
        }
    }
    Ok(())
}

/// No root pointer of ACPI where the BIOS would have put one.
fn no_firmware_tables() -> Verdict {
    const SIGNATURE: u64 = u64::from_le_bytes(*b"RSD PTR ");
    for page in (0xe_0000..0x10_0000).step_by(4096) {
        let window = paging::set_area(0, page | P | A | NX);
        for at in (0..4096).step_by(16) {
            holds("no root pointer", paging::read_word(window + at) != SIGNATURE)?;
        }
    }
    paging::area_entry(0, 0).store(0, Relaxed);
    Ok(())
}
