//! Reads what a PVH loader hands over, and writes the same for L1 (Xen public headers, `hvm_start_info`).
//! May: nothing. Context: boot. Input: the loader, trusted.

use super::{
    entry,
    memory::{bytes, copy},
};
use arrayvec::ArrayVec;

/// `struct hvm_start_info`, version 1.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    /// Where the way to the ACPI tables starts.
    pub rsdp: u64,
    memory_map: u64,
    memory_entries: u32,
    reserved: u32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Module {
    start: u64,
    size: u64,
    command_line: u64,
    reserved: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct MemoryEntry {
    start: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
/// Memory that firmware keeps: ACPI's NVS.
const KEPT: u32 = 4;
/// What RAM of the low megabyte is to L1.
const RESERVED: u32 = 2;
const LOW: u64 = 0x10_0000;
/// Longest command line that is read.
const COMMAND_LINE: u64 = 256;

impl StartInfo {
    /// The one at `address`.
    pub fn at(address: u64) -> Self {
        let info: Self = copy(address);
        assert!(info.magic == MAGIC && info.modules == 1, "not started by PVH with one module");
        info
    }

    /// The command line.
    pub fn command_line(&self) -> &'static str {
        let text = bytes(self.command_line, COMMAND_LINE);
        let len = text.iter().position(|&byte| byte == 0).expect("a short command line");
        str::from_utf8(&text[..len]).expect("text")
    }

    /// The module.
    pub fn module(&self) -> &'static mut [u8] {
        let module: Module = copy(self.module_list);
        bytes(module.start, module.size)
    }
}

/// What L1 is given.
#[derive(Debug)]
pub struct ForL1 {
    info: StartInfo,
    module: Module,
    memory: ArrayVec<MemoryEntry, 64>,
}

impl ForL1 {
    /// The machine of `info` with `bundle` as module, without the memory of this program and, unless
    /// `low`, without the low megabyte.
    pub fn of(info: &StartInfo, bundle: &[u8], low: bool) -> Self {
        let module = Module {
            start: bundle.as_ptr() as u64,
            size: bundle.len() as u64,
            command_line: 0,
            reserved: 0,
        };
        let mut given = Self { info: *info, module, memory: ArrayVec::new() };
        let own = entry::image();
        for index in 0..u64::from(info.memory_entries) {
            let mut entry: MemoryEntry =
                copy(info.memory_map + index * size_of::<MemoryEntry>() as u64);
            let end = entry.start + entry.size;
            if entry.kind == RAM && end <= LOW && !low {
                entry.kind = RESERVED;
            }
            if entry.kind == RAM && entry.start <= own.start && own.end <= end {
                given.add(entry.start..own.start, RAM);
                given.add(own.clone(), KEPT);
                given.add(own.end..end, RAM);
            } else {
                given.memory.push(entry);
            }
        }
        given
    }

    fn add(&mut self, range: core::ops::Range<u64>, kind: u32) {
        let size = range.end - range.start;
        self.memory.push(MemoryEntry { start: range.start, size, kind, reserved: 0 });
    }

    /// Where it is, once it stays there.
    pub fn place(&mut self) -> u32 {
        self.info.command_line = 0;
        self.info.module_list = &raw const self.module as u64;
        self.info.memory_map = self.memory.as_ptr() as u64;
        self.info.memory_entries = self.memory.len() as u32;
        &raw const self.info as u32
    }
}
