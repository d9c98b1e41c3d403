//! Lays out L2's memory: tables, code, stacks, handlers.
//! May: guest-memory. Context: any.
//!
//! Every VM has 64 pages at GPA 0. Its page tables map the first 5 GiB where they lie, for every
//! CPL, so programs reach memory, devices and holes by their GPA.

use crate::{
    l0::lists,
    runtime::ram::{self, PAGE},
};
use pv_abi::{
    event::has_error_code,
    l0::list::{MapRange, Region},
};

/// Pages at GPA 0.
pub const BLOCK_PAGES: u64 = 64;
/// The region around them.
pub const LOW: Region = Region { gpa: 0, pages: 1024 };
/// A region where checks map.
pub const TEST: Region = Region { gpa: 0x4000_0000, pages: 16384 };
/// A region above 4 GiB.
pub const HIGH: Region = Region { gpa: 1 << 32, pages: 1024 };
/// All of them.
pub const REGIONS: [Region; 3] = [LOW, TEST, HIGH];
/// A GPA outside all regions.
pub const DEVICE: u64 = 0xd000_0000;
/// A GPA in a region where nothing is mapped.
pub const HOLE: u64 = 0x20_0000;

/// The page tables' root.
pub const ROOT: u64 = 0x1000;
const UPPER: u64 = 0x2000;
const DIRECTORIES: u64 = 0x3000;
const GIBIBYTES: u64 = 5;
/// The global descriptor table.
pub const GDT: u64 = 0xa000;
/// The interrupt descriptor table.
pub const IDT: u64 = 0xb000;
const HANDLERS: u64 = 0xc000;
const HANDLER_BYTES: u64 = 32;
/// For programs: 192 KiB.
pub const DATA: u64 = 0x1_0000;
/// Past it.
pub const DATA_END: u64 = BLOCK_PAGES * PAGE;

/// A handler reports its vector at this port, in AL.
pub const VECTOR_PORT: u16 = 0xe0;
/// And its error code at this one, in EAX.
pub const ERROR_PORT: u16 = 0xe1;
/// A program reports that it is done, and EAX, at this one.
pub const DONE_PORT: u16 = 0xf0;

/// Selectors of the GDT.
pub mod selector {
    /// 64-bit code.
    pub const CODE: u16 = 0x08;
    /// Data.
    pub const DATA: u16 = 0x10;
    /// 32-bit code.
    pub const CODE_32: u16 = 0x18;
}

/// The page of the code of a vCPU (0 or 1).
pub const fn code(vcpu: u32) -> u64 {
    if vcpu == 0 { 0x8000 } else { 0xe000 }
}

/// The top of the stack of a vCPU (0 or 1).
pub const fn stack_top(vcpu: u32) -> u64 {
    code(vcpu) + 2 * PAGE
}

/// The entry that maps the block whose frames start at `base`.
pub fn block(base: u64) -> MapRange {
    lists::map(0, base, BLOCK_PAGES)
}

/// Fills the block at L1 address `base`.
pub fn fill(base: u64) {
    const TABLE: u64 = 7;
    const LARGE: u64 = 0x87;
    ram::store(base + ROOT, UPPER | TABLE);
    for gib in 0..GIBIBYTES {
        let directory = DIRECTORIES + gib * PAGE;
        ram::store(base + UPPER + 8 * gib, directory | TABLE);
        for entry in 0..512 {
            ram::store(base + directory + 8 * entry, gib << 30 | entry << 21 | LARGE);
        }
    }
    let descriptors = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff];
    for (index, descriptor) in descriptors.iter().enumerate() {
        ram::store(base + GDT + 8 * index as u64, *descriptor);
    }
    (0..=255).for_each(|vector| handler(base, vector));
}

/// Writes the gate and the handler of a vector.
fn handler(base: u64, vector: u8) {
    let target = HANDLERS + HANDLER_BYTES * u64::from(vector);
    let gate = base + IDT + 16 * u64::from(vector);
    ram::store(gate, target & 0xffff | u64::from(selector::CODE) << 16 | 0x8e << 40);
    ram::store(gate + 8, 0);
    // push rax; mov al, vector; out VECTOR_PORT, al
    let start = [0x50, 0xb0, vector, 0xe6, VECTOR_PORT as u8];
    ram::write_bytes(base + target, &start);
    // pop rax; iretq
    const END: [u8; 3] = [0x58, 0x48, 0xcf];
    // mov eax, [rsp + 8]; out ERROR_PORT, eax; pop rax; add rsp, 8; iretq
    const END_WITH_ERROR: [u8; 13] =
        [0x8b, 0x44, 0x24, 8, 0xe7, ERROR_PORT as u8, 0x58, 0x48, 0x83, 0xc4, 8, 0x48, 0xcf];
    let end: &[u8] = if has_error_code(vector) { &END_WITH_ERROR } else { &END };
    ram::write_bytes(base + target + start.len() as u64, end);
}
