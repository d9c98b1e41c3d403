//! Reads what a PVH loader hands over (Xen public headers, `hvm_start_info`).
//! May: nothing. Context: boot. Input: the loader, trusted.

use super::{
    acpi::Root,
    entry::{self, Given, copy},
};
use crate::memory::ranges::Ranges;

/// `struct hvm_start_info` (Xen public headers, version 1).
#[derive(Clone, Copy)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_entries: u32,
    reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Module {
    start: u64,
    size: u64,
    command_line: u64,
    reserved: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct MemoryEntry {
    start: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

const MAGIC: u32 = 0x336e_c578;
const USABLE: u32 = 1;

/// Copies it.
pub fn read(start_info: u64) -> Given {
    let info: StartInfo = copy(start_info);
    assert!(info.magic == MAGIC, "not started by a PVH loader");
    let mut usable = Ranges::new();
    for index in 0..u64::from(info.memory_entries) {
        let entry: MemoryEntry = copy(info.memory_map + index * size_of::<MemoryEntry>() as u64);
        if entry.kind == USABLE {
            usable.add_whole_pages(entry.start..entry.start.saturating_add(entry.size));
        }
    }
    let module = (info.modules > 0).then(|| {
        let module: Module = copy(info.module_list);
        module.start..module.start + module.size
    });
    let acpi = (info.rsdp != 0).then_some(Root::Pointer(info.rsdp));
    let words = if info.command_line == 0 { 0..0 } else { info.command_line..u64::MAX };
    let command_line = entry::command_line(words.map(copy).take_while(|&byte: &u8| byte != 0));
    Given { usable, module, acpi, command_line }
}
