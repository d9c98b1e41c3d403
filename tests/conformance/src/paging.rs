//! The guest's own page tables.
//!
//! Kernel and data are mapped where they lie, supervisor-only; the user snippets likewise, for
//! user mode; [`AREA`] is a range of pages that checks map as they please, and [`map`] reaches any
//! other address. What a check changes, [`reset`] takes back.
#![expect(unsafe_code, reason = "page tables are raw memory")]

use crate::{abi, code::Code};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use pv_abi::{ext::NativeBoot, hypercall};

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const NX: u64 = 1 << 63;
/// Bits of an upper-level entry that forbid nothing.
pub const TABLE: u64 = P | W | U | A;

/// Where checks map things: 504 pages, and the user stack behind them.
pub const AREA: u64 = 0x4000_0000;
/// Pages of the user stack, the last of the area.
const STACK_PAGES: usize = 8;
/// One past the user stack.
pub const USER_STACK_TOP: u64 = AREA + 512 * 4096;

/// Check memory: 2 MiB that nothing else uses, mapped one to one for the kernel. Its first 128
/// frames are for checks, the stack's follow, and then come tables.
pub const FRAMES: u64 = 0x100_0000;
const FRAMES_END: u64 = FRAMES + (2 << 20);
const STACK_FRAME: usize = 128;
const FIRST_TABLE: usize = STACK_FRAME + STACK_PAGES;

type Entries = [AtomicU64; 512];

#[repr(C, align(4096))]
struct Table(Entries);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    fn address(&self) -> u64 {
        &raw const *self as u64
    }

    /// Gives every entry its value; the kernel runs on these tables meanwhile.
    fn fill(&self, value: impl Fn(usize) -> u64) {
        for (index, entry) in self.0.iter().enumerate() {
            entry.store(value(index), Relaxed);
        }
    }
}

/// A root with its upper tables and the area's leaf table.
struct Space {
    root: Table,
    pdpt: Table,
    low: Table,
    high: Table,
    area: Table,
}

impl Space {
    const fn new() -> Self {
        Self {
            root: Table::new(),
            pdpt: Table::new(),
            low: Table::new(),
            high: Table::new(),
            area: Table::new(),
        }
    }

    fn reset(&self) {
        const FIRST_STACK: usize = 512 - STACK_PAGES;
        let links = |targets: &[(usize, u64)], index: usize| {
            targets.iter().find(|(at, _)| *at == index).map_or(0, |(_, entry)| *entry)
        };
        let link = |table: &Table| table.address() | TABLE;
        self.area.fill(|index| match index {
            FIRST_STACK.. => frame(STACK_FRAME + index - FIRST_STACK) | P | W | U | A | D | NX,
            _ => 0,
        });
        self.high.fill(|index| links(&[(0, link(&self.area))], index));
        let check_memory = FRAMES | P | W | A | D | PS | NX;
        let low = [(1, link(&KERNEL)), ((FRAMES >> 21) as usize, check_memory)];
        self.low.fill(|index| links(&low, index));
        self.pdpt.fill(|index| links(&[(0, link(&self.low)), (1, link(&self.high))], index));
        self.root.fill(|index| links(&[(0, link(&self.pdpt))], index));
    }
}

/// Two address spaces with the same kernel.
static SPACES: [Space; 2] = [Space::new(), Space::new()];
static KERNEL: Table = Table::new();
/// Tables that checks have taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static user_start: u8;
    static user_end: u8;
    static guest_end: u8;
}

/// Where the image was linked.
pub fn image() -> core::ops::Range<u64> {
    0x20_0000..&raw const guest_end as u64
}

/// The last word of the image: zeroed memory that nothing uses.
pub fn last_image_word() -> u64 {
    read_word(image().end - 8)
}

/// The word at a mapped address.
pub fn read_word(address: u64) -> u64 {
    assert!(address.is_multiple_of(8));
    // SAFETY: the caller has mapped it for the kernel.
    unsafe { (address as *const u64).read_volatile() }
}

/// Whether memory at a mapped address keeps what is written; it gets back what it held.
pub fn holds_a_word(address: u64) -> bool {
    const VALUE: u64 = 0x0123_4567_89ab_cdef;
    let at = address as *mut u64;
    // SAFETY: the caller has mapped it for the kernel, and nobody else uses it meanwhile.
    unsafe {
        let before = at.read_volatile();
        at.write_volatile(VALUE);
        let found = at.read_volatile();
        at.write_volatile(before);
        found == VALUE
    }
}

/// Builds the tables and loads the first space.
pub fn init(boot: &NativeBoot) {
    assert!(boot.memory >= 32 << 20, "the checks need 32 MiB");
    let user = &raw const user_start as u64..&raw const user_end as u64;
    let end = &raw const guest_end as u64;
    assert!(end <= 0x40_0000, "one leaf table maps the kernel");
    for page in (0x20_0000..end).step_by(4096) {
        let flags = if user.contains(&page) { P | U | A } else { P | W | A | D };
        KERNEL.0[(page >> 12 & 511) as usize].store(page | flags, Relaxed);
    }
    reset();
}

/// Takes back everything that checks have mapped, and loads the first space.
pub fn reset() {
    for space in &SPACES {
        space.reset();
    }
    TAKEN.store(0, Relaxed);
    load(0);
}

/// Root table of space `space`.
pub fn cr3(space: usize) -> u64 {
    SPACES[space].root.address()
}

/// Loads space `space` and flushes.
pub fn load(space: usize) {
    load_cr3(hypercall::LOAD_PGTBL_FLUSH, cr3(space));
}

/// LOAD_PGTBL.
pub fn load_cr3(flags: u64, cr3: u64) -> u64 {
    abi::call(hypercall::LOAD_PGTBL, [flags, cr3, 0, 0])
}

/// Flushes the current space.
pub fn flush() {
    abi::call(hypercall::TLB_FLUSH_CURRENT, [0; 4]);
}

/// Flushes one address.
pub fn invlpg(address: u64) {
    abi::call1(hypercall::TLB_INVLPG, address);
}

/// Address of page `index` of the area.
pub const fn area(index: usize) -> u64 {
    AREA + 4096 * index as u64
}

/// The leaf entry of page `index` of the area in space `space`.
pub fn area_entry(space: usize, index: usize) -> &'static AtomicU64 {
    &SPACES[space].area.0[index]
}

/// Maps page `index` of the area in the first space to `entry`, and flushes it.
pub fn set_area(index: usize, entry: u64) -> u64 {
    area_entry(0, index).store(entry, Relaxed);
    invlpg(area(index));
    area(index)
}

/// Frame `index` of check memory.
pub const fn frame(index: usize) -> u64 {
    FRAMES + 4096 * index as u64
}

/// A zeroed table of check memory: its physical address.
pub fn take_table() -> u64 {
    let address = frame(FIRST_TABLE + TAKEN.fetch_add(1, Relaxed) as usize);
    entries(address).iter().for_each(|entry| entry.store(0, Relaxed));
    address
}

fn entries(table: u64) -> &'static Entries {
    let ours = (0x20_0000..&raw const guest_end as u64).contains(&table)
        || (FRAMES..FRAMES_END).contains(&table);
    assert!(ours && table.is_multiple_of(4096), "no table of ours at {table:#x}");
    // SAFETY: identity-mapped memory of the guest's own that is accessed as atomics only.
    unsafe { &*(table as *const Entries) }
}

/// Entry for `address` at `level` (4 = root), whose table exists.
pub fn entry(space: usize, address: u64, level: u32) -> &'static AtomicU64 {
    entry_below(cr3(space), 4, address, level)
}

fn index(address: u64, level: u32) -> usize {
    (address >> (3 + 9 * level) & 511) as usize
}

fn entry_below(table: u64, top: u32, address: u64, level: u32) -> &'static AtomicU64 {
    let entry = &entries(table)[index(address, top)];
    if top == level {
        return entry;
    }
    let next = entry.load(Relaxed);
    assert!(next & (P | PS) == P, "no table for {address:#x} at level {}", top - 1);
    entry_below(next & 0x000f_ffff_ffff_f000, top - 1, address, level)
}

/// Maps `address` in space `space` to the leaf `value` at `level`, making tables where none are.
/// Does not flush: nothing was there.
pub fn map(space: usize, address: u64, value: u64, level: u32) -> &'static AtomicU64 {
    for above in (level + 1..=4).rev() {
        let link = entry(space, address, above);
        if link.load(Relaxed) & P == 0 {
            link.store(take_table() | TABLE, Relaxed);
        }
    }
    let leaf = entry(space, address, level);
    leaf.store(value, Relaxed);
    leaf
}

/// A word of check memory, by physical address.
pub fn word(physical: u64) -> &'static AtomicU64 {
    assert!((FRAMES..FRAMES_END).contains(&physical) && physical.is_multiple_of(8));
    // SAFETY: check memory is mapped one to one in both spaces and accessed as atomics only.
    unsafe { &*(physical as *const AtomicU64) }
}

/// Half a word of check memory's words of 32 bits, by physical address.
pub fn half(physical: u64) -> &'static AtomicU16 {
    assert!((FRAMES..FRAMES_END).contains(&physical) && physical.is_multiple_of(2));
    // SAFETY: as for `word`.
    unsafe { &*(physical as *const AtomicU16) }
}

/// A register of 32 bits that is mapped in the area.
pub fn device(address: u64) -> &'static AtomicU32 {
    assert!((AREA..USER_STACK_TOP).contains(&address) && address.is_multiple_of(4));
    // SAFETY: a check has mapped a device's registers there; they hold any value.
    unsafe { &*(address as *const AtomicU32) }
}

/// The same of 16 bits.
pub fn device16(address: u64) -> &'static AtomicU16 {
    assert!((AREA..USER_STACK_TOP).contains(&address) && address.is_multiple_of(2));
    // SAFETY: as for `device`.
    unsafe { &*(address as *const AtomicU16) }
}

/// Copies machine code to check memory.
pub fn write_code(physical: u64, code: Code) {
    // SAFETY: a snippet of this program.
    let bytes = unsafe {
        core::slice::from_raw_parts(code.start as *const u8, (code.end - code.start) as usize)
    };
    write_bytes(physical, bytes);
}

/// Copies bytes to check memory.
pub fn write_bytes(physical: u64, bytes: &[u8]) {
    assert!(physical >= FRAMES && physical + bytes.len() as u64 <= FRAMES_END);
    for (offset, byte) in bytes.iter().enumerate() {
        // SAFETY: check memory, as above; one vCPU.
        unsafe { ((physical + offset as u64) as *mut u8).write_volatile(*byte) };
    }
}
