//! The guest's memory: its own address space, the jail that hostile code runs in, and frames for
//! attacks to do with as they please.
//! May: unsafe. Context: any. Input: trusted; tables may hold whatever an attack put there.
//!
//! Guest-physical memory, from 0: a copy of the jail's root, so that small numbers name one that can
//! be loaded; the image at 2 MiB; canaries at 8 MiB; frames for attacks from 10 MiB on.
#![expect(unsafe_code, reason = "page tables and frames are raw memory")]

use super::{abi, entry};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
/// A page of data that both modes may use.
const DATA_PAGE: u64 = P | W | U | A | D | NX;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const LARGE: u64 = 2 * MIB;

/// Where the jail has what is not the image's: beyond all guest-physical memory, so that none of
/// its addresses names a frame.
pub const AREA: u64 = 0x4000_0000;
/// Pages of data that both modes may write.
pub const DATA_PAGES: u64 = 4;
/// First of them, of the first vCPU.
pub const DATA: u64 = area(FIRST.data);
/// Where code starts in its page.
pub const CODE_START: u64 = 0x800;
/// Bytes from there that [`write_code`] sets.
pub const CODE_LENGTH: usize = 64;
/// Eight of INT3.
const BREAKPOINTS: u64 = u64::from_ne_bytes([0xcc; 8]);
/// First page of the area that is free.
pub const FREE_PAGE: usize = 16;

/// Memory that nobody but the judge touches.
const CANARY: u64 = 8 * MIB;
const CANARY_LENGTH: u64 = MIB;
/// Frames that attacks use.
const FRAMES: u64 = 10 * MIB;

/// What a vCPU's trials run in, by pages of the area.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Hostile code for supervisor mode; the next page has the same code for user mode.
    pub code: usize,
    /// The first of [`DATA_PAGES`].
    pub data: usize,
    /// Frame of the code; those of the data follow.
    frame: u64,
}

const FIRST: Pages = Pages { code: 0, data: 4, frame: FRAMES };
/// Mapped for attacks that have a second vCPU, by [`admit_second`].
const SECOND: Pages = Pages { code: 2, data: 8, frame: FRAMES + 8 * PAGE };

/// Those of the vCPU that asks.
pub fn own_pages() -> Pages {
    if abi::is_second() { SECOND } else { FIRST }
}
/// First of the frames that attacks share out among themselves.
const FREE: u64 = FRAMES + 16 * PAGE;
/// Least memory.
const NEEDED: u64 = 32 * MIB;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    fn address(&self) -> u64 {
        &raw const *self as u64
    }

    fn link(&self) -> u64 {
        self.address() | TABLE
    }

    fn fill(&self, value: impl Fn(usize) -> u64) {
        for (index, entry) in self.0.iter().enumerate() {
            entry.store(value(index), Relaxed);
        }
    }
}

/// The guest's own tables below `kernel_root`.
static KERNEL: [Table; 3] = [const { Table::new() }; 3];
/// The jail's: root, the two tables below it, those of the gate's pages, those of the area.
static JAIL: [Table; 5] = [const { Table::new() }; 5];
const ROOT: usize = 0;
const UPPER: usize = 1;
const LOW: usize = 2;
const GATE: usize = 3;
const LEAF: usize = 4;
static AREA_DIRECTORY: Table = Table::new();
static MEMORY: AtomicU64 = AtomicU64::new(0);

fn address(symbol: *const u8) -> u64 {
    symbol as u64
}

fn image_end() -> u64 {
    address(&raw const entry::guest_end)
}

/// The pages that every address space maps: the code, and from here on the state.
fn gate() -> core::ops::Range<u64> {
    address(&raw const entry::gate_start)..address(&raw const entry::state_end)
}

fn gate_entry(page: u64) -> u64 {
    let state = &raw const entry::trial_state as u64;
    if page < state & !(PAGE - 1) { page | P | A } else { page | P | W | A | D | NX }
}

/// Builds the guest's own tables and the jail, and loads the former.
pub fn init(boot: &NativeBoot) {
    assert!(boot.memory >= NEEDED, "the attacks need 32 MiB");
    assert!(image_end() <= 2 * LARGE, "one leaf table maps the image");
    MEMORY.store(boot.memory & !(LARGE - 1), Relaxed);
    let [upper, directory, image] = &KERNEL;
    let data = address(&raw const entry::gate_start);
    image.fill(|index| match LARGE + PAGE * index as u64 {
        page if page >= image_end() => 0,
        page if gate().contains(&page) => gate_entry(page),
        page if page < data => page | P | A,
        page => page | P | W | A | D | NX,
    });
    directory.fill(|index| match LARGE * index as u64 {
        LARGE => image.link(),
        page if page >= memory() => 0,
        page => page | P | W | A | D | PS | NX,
    });
    upper.fill(|index| if index == 0 { directory.link() } else { 0 });
    entry::kernel_root[0].store(upper.link(), Relaxed);
    reset_jail();
    abi::call(hypercall::LOAD_PGTBL, [hypercall::LOAD_PGTBL_FLUSH, kernel_root(), 0, 0]);
    fill_canary();
}

/// Bytes of memory.
pub fn memory() -> u64 {
    MEMORY.load(Relaxed)
}

/// The guest's own root.
pub fn kernel_root() -> u64 {
    &raw const entry::kernel_root as u64
}

/// The jail's root.
pub fn jail() -> u64 {
    JAIL[ROOT].address()
}

/// Makes the jail what it was. What the hypervisor knows of it is flushed.
pub fn reset_jail() {
    JAIL[LEAF].fill(area_entry);
    AREA_DIRECTORY.fill(|index| if index == 0 { JAIL[LEAF].link() } else { 0 });
    JAIL[GATE].fill(|index| match LARGE + PAGE * index as u64 {
        page if gate().contains(&page) => gate_entry(page),
        _ => 0,
    });
    JAIL[LOW].fill(|index| if index == 1 { JAIL[GATE].link() } else { 0 });
    JAIL[UPPER].fill(|index| match index {
        0 => JAIL[LOW].link(),
        1 => AREA_DIRECTORY.link(),
        _ => 0,
    });
    JAIL[ROOT].fill(|index| if index == 0 { JAIL[UPPER].link() } else { 0 });
    // Small values of CR3 name a root, too.
    for index in 0..512 {
        word(8 * index as u64).store(JAIL[ROOT].0[index].load(Relaxed), Relaxed);
    }
    flush();
}

fn area_entry(index: usize) -> u64 {
    FIRST.entry(index).unwrap_or(0)
}

impl Pages {
    fn entry(self, index: usize) -> Option<u64> {
        let data = self.data..self.data + DATA_PAGES as usize;
        match index {
            _ if index == self.code => Some(code_page(self.frame)),
            _ if index == self.code + 1 => Some(code_page(self.frame) | U),
            _ if data.contains(&index) => Some(data_page(self.data_frame(index - self.data))),
            _ => None,
        }
    }

    pub const fn data_frame(self, page: usize) -> u64 {
        self.frame + PAGE * (1 + page as u64)
    }
}

/// Maps the second vCPU's pages in the jail, until it is reset.
pub fn admit_second() {
    fill_frame(SECOND.frame, |_| BREAKPOINTS);
    for (index, leaf) in JAIL[LEAF].0.iter().enumerate() {
        if let Some(entry) = SECOND.entry(index) {
            leaf.store(entry, Relaxed);
        }
    }
}

/// Flushes all translations.
pub fn flush() {
    abi::call(hypercall::TLB_FLUSH, [0; 4]);
}

/// The jail's entry for slot `index` of its root.
pub fn jail_slot(index: usize) -> &'static AtomicU64 {
    &JAIL[ROOT].0[index]
}

/// The jail's leaf entry for page `index` of the area.
pub fn leaf(index: usize) -> &'static AtomicU64 {
    &JAIL[LEAF].0[index]
}

/// Address of page `index` of the area.
pub const fn area(index: usize) -> u64 {
    AREA + PAGE * index as u64
}

/// How to map a frame of data in the area.
pub const fn data_page(frame: u64) -> u64 {
    frame | DATA_PAGE
}

/// How to map a frame of code for supervisor mode.
pub const fn code_page(frame: u64) -> u64 {
    frame | P | A
}

/// The frame that both pages of code show, of the first vCPU.
pub const fn code_frame() -> u64 {
    FIRST.frame
}

/// Frame `index` of those that are an attack's while it runs.
pub const fn frame(index: u64) -> u64 {
    FREE + PAGE * index
}

/// How many there are.
pub fn frames() -> u64 {
    // A module may lie at the end.
    (memory() - FREE) / PAGE - 512
}

/// A word of memory outside the image, by guest-physical address.
pub fn word(gpa: u64) -> &'static AtomicU64 {
    let image = LARGE..2 * LARGE;
    assert!(!image.contains(&gpa) && gpa < memory() && gpa.is_multiple_of(8));
    // SAFETY: mapped one to one, and accessed as atomics only.
    unsafe { &*(gpa as *const AtomicU64) }
}

/// Gives every word of a frame its value.
pub fn fill_frame(frame: u64, mut value: impl FnMut(u64) -> u64) {
    for index in 0..512 {
        word(frame + 8 * index).store(value(index), Relaxed);
    }
}

/// Puts hostile code into its page, which ends with breakpoints.
pub fn write_code(code: &[u8]) {
    let mut bytes = [0xcc; CODE_LENGTH];
    let frame = own_pages().frame;
    let length = code.len().min(CODE_LENGTH);
    bytes[..length].copy_from_slice(&code[..length]);
    for (index, word_bytes) in bytes.as_chunks().0.iter().enumerate() {
        let at = word(frame + CODE_START + 8 * index as u64);
        at.store(u64::from_le_bytes(*word_bytes), Relaxed);
    }
}

/// Stores a word of the data, at a byte offset.
pub fn set_data(offset: u64, value: u64) {
    word(FIRST.data_frame(0) + offset).store(value, Relaxed);
}

/// The bytes below the stack that a trial starts with are all data; this offset is its top.
pub const STACK_OFFSET: u64 = DATA_PAGES * PAGE / 2;

/// Makes all of the code page breakpoints, and all data `value`.
pub fn reset_pages(mut value: impl FnMut() -> u64) {
    fill_frame(FIRST.frame, |_| BREAKPOINTS);
    for page in 0..DATA_PAGES as usize {
        fill_frame(FIRST.data_frame(page), |_| value());
    }
}

fn canary_words() -> impl Iterator<Item = (u64, u64)> {
    (CANARY..CANARY + CANARY_LENGTH)
        .step_by(8)
        .map(|at| (at, at.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn fill_canary() {
    canary_words().for_each(|(at, value)| word(at).store(value, Relaxed));
}

/// The first word of the canaries that is not what it was: where, what it is, what it was.
pub fn dead_canary() -> Option<[u64; 3]> {
    let words = canary_words().map(|(at, value)| [at, word(at).load(Relaxed), value]);
    words.into_iter().find(|[_, found, value]| found != value)
}

/// A sum over the image's code and constants: what no attack has any business with.
pub fn image_hash() -> u64 {
    let end = gate().end & !(PAGE - 1);
    let end = end.min(&raw const entry::trial_state as u64 & !(PAGE - 1));
    (LARGE..end).step_by(8).fold(0xcbf2_9ce4_8422_2325, |hash, at| {
        // SAFETY: the image, which is mapped for reading; nobody writes this part of it.
        let word = unsafe { (at as *const u64).read_volatile() };
        (hash ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(29)
    })
}
