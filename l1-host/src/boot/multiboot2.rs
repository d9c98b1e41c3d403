//! Reads what a Multiboot2 loader hands over (Multiboot2 Specification 2.0, section 3.6).
//! May: unsafe. Context: boot. Input: the loader, trusted.
#![expect(unsafe_code, reason = "the loader's structures are raw memory")]

use super::{
    acpi::Root,
    entry::{self, Given, KERNEL_BASE},
};
use crate::memory::ranges::Ranges;
use multiboot2::{BootInformation, MemoryAreaType};

/// Copies it: the loader has put it into memory that is free.
pub fn read(information: u64) -> Given {
    let at = (KERNEL_BASE + information) as *const multiboot2::BootInformationHeader;
    // SAFETY: the loader's magic number says that its boot information is there, which the start-up
    // tables map; nobody writes it before it has been copied, which is what follows.
    let information = unsafe { BootInformation::load(at) };
    let Ok(information) = information else { panic!("the loader's boot information is damaged") };
    let mut usable = Ranges::new();
    let areas = information.memory_map_tag().map_or(&[][..], |map| map.memory_areas());
    for area in areas.iter().filter(|area| area.typ() == MemoryAreaType::Available) {
        usable.add_whole_pages(area.start_address()..area.end_address());
    }
    let mut modules = information.module_tags();
    let module =
        modules.next().map(|tag| u64::from(tag.start_address())..u64::from(tag.end_address()));
    // What the loader has copied here is the root pointer; it leads to tables that stay.
    let old = information.rsdp_v1_tag().map(|pointer| (0, pointer.rsdt_address()));
    let new = information.rsdp_v2_tag().map(|pointer| (pointer.revision(), pointer.xsdt_address()));
    let acpi = new.or(old).map(|(revision, address)| Root::Table { revision, address });
    let words = information.command_line_tag().and_then(|tag| tag.cmdline().ok()).unwrap_or("");
    let command_line = entry::command_line(words.bytes());
    Given { usable, module, acpi, command_line }
}
