//! The guest's own page tables.
//!
//! Kernel and data are mapped where they lie, supervisor-only; the user snippets likewise, for
//! user mode; [`AREA`] is a range of pages that checks map as they please.
#![expect(unsafe_code, reason = "page tables are raw memory")]

use crate::abi;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use pv_abi::{ext::NativeBoot, hypercall};

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const NX: u64 = 1 << 63;

/// Where checks map things: 512 pages.
pub const AREA: u64 = 0x4000_0000;
/// Physical frames for them: 64 pages, which nothing else uses.
pub const FRAMES: u64 = 0x100_0000;
/// The user stack: the last page of the area's last 16.
pub const USER_STACK_TOP: u64 = AREA + 512 * 4096;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    fn address(&self) -> u64 {
        &raw const *self as u64
    }
}

/// A root with its upper tables; leaf tables of the low 2 MiB pieces are shared.
pub struct Space {
    root: Table,
    pdpt: Table,
    low: Table,
    high: Table,
}

impl Space {
    const fn new() -> Self {
        Self { root: Table::new(), pdpt: Table::new(), low: Table::new(), high: Table::new() }
    }

    pub fn cr3(&self) -> u64 {
        self.root.address()
    }

    /// Entry `slot` of the root.
    pub fn root_entry(&self, slot: usize) -> &AtomicU64 {
        &self.root.0[slot]
    }
}

/// Two address spaces with the same kernel and different areas.
pub static SPACES: [Space; 2] = [Space::new(), Space::new()];
static KERNEL: Table = Table::new();
static AREAS: [Table; 2] = [Table::new(), Table::new()];

/// The leaf entry of page `index` of the area in address space `space`.
pub fn area_entry(space: usize, index: usize) -> &'static AtomicU64 {
    &AREAS[space].0[index]
}

/// Address of page `index` of the area.
pub fn area(index: usize) -> u64 {
    AREA + 4096 * index as u64
}

/// The frame of check memory with number `index`.
pub fn frame(index: usize) -> u64 {
    FRAMES + 4096 * index as u64
}

unsafe extern "C" {
    static user_start: u8;
    static user_end: u8;
    static guest_end: u8;
}

pub fn init(boot: &NativeBoot) {
    const TABLE: u64 = P | W | U | A;
    assert!(boot.memory >= 32 << 20, "the checks need 32 MiB");
    let user = &raw const user_start as u64..&raw const user_end as u64;
    let end = &raw const guest_end as u64;
    assert!(end <= 0x40_0000, "one leaf table maps the kernel");
    for page in (0x20_0000..end).step_by(4096) {
        let flags = if user.contains(&page) { P | U | A } else { P | W | A | D };
        KERNEL.0[(page >> 12 & 511) as usize].store(page | flags, Relaxed);
    }
    for (space, area_table) in SPACES.iter().zip(&AREAS) {
        space.root.0[0].store(space.pdpt.address() | TABLE, Relaxed);
        space.pdpt.0[0].store(space.low.address() | TABLE, Relaxed);
        space.pdpt.0[1].store(space.high.address() | TABLE, Relaxed);
        space.low.0[1].store(KERNEL.address() | TABLE, Relaxed);
        // Check memory for the kernel, as a large page.
        space.low.0[(FRAMES >> 21) as usize].store(FRAMES | P | W | A | D | PS | NX, Relaxed);
        space.high.0[0].store(area_table.address() | TABLE, Relaxed);
        // The stack's frames are the last of check memory.
        for page in 0..8 {
            let target = frame(64 + page) | P | W | U | A | D | NX;
            area_table.0[504 + page].store(target, Relaxed);
        }
    }
    load(0);
}

/// Loads address space `space` and flushes.
pub fn load(space: usize) {
    let cr3 = SPACES[space].cr3();
    abi::call(hypercall::LOAD_PGTBL, [hypercall::LOAD_PGTBL_FLUSH, cr3, 0, 0]);
}

pub fn invlpg(address: u64) {
    abi::call(hypercall::TLB_INVLPG, [address, 0, 0, 0]);
}

/// A word of check memory, by physical address.
pub fn word(physical: u64) -> &'static AtomicU64 {
    assert!((FRAMES..FRAMES + (2 << 20)).contains(&physical));
    // SAFETY: check memory is mapped one to one in both spaces and accessed as atomics only.
    unsafe { &*(physical as *const AtomicU64) }
}
