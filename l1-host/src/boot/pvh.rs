//! Reads what a PVH loader hands over, and switches to L1's own tables.
//! May: unsafe, asm, cr3. Context: boot. Input: the loader, trusted.
#![expect(unsafe_code, reason = "the first instructions, and memory before it is mapped")]

use crate::{
    hw::{cpu::BaseAccess, features::Features, percpu},
    memory::{
        paging::{self, ImageLayout, Tree},
        ranges::Ranges,
    },
};
use core::{arch::global_asm, ops::Range};
use switcher::enter::{Buffers, Enter};

/// L1 address minus physical address.
pub const KERNEL_BASE: u64 = 0xffff_8000_0000_0000;
/// The boot CPU's stack.
const STACK_SIZE: u64 = 256 << 10;
/// What the start-up tables map.
pub const MAPPED: u64 = 4 << 30;

global_asm!(
    include_str!("pvh.S"),
    STACK_SIZE = const STACK_SIZE,
    options(att_syntax)
);

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static image_end: u8;
    static l1_stack_guard: u8;
}

/// What L1 needs to know of the machine at start.
#[derive(Debug)]
pub struct BootInfo {
    /// RAM.
    pub usable: Ranges,
    /// The boot module.
    pub module: Option<Range<u64>>,
    /// The firmware's tables start here; 0 for none.
    pub rsdp: u64,
    /// L1's own image.
    pub layout: ImageLayout,
    /// Where it was loaded, start-up code included.
    pub image_physical: Range<u64>,
}

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

/// Copies a structure of the loader's.
fn copy<T: Copy>(physical: u64) -> T {
    // SAFETY: the start-up tables map the first 4 GiB at KERNEL_BASE, where the loader keeps its
    // structures; they are plain integers.
    unsafe { ((KERNEL_BASE + physical) as *const T).read_unaligned() }
}

/// Called by `pvh.S` in long mode, on the start-up stack and tables.
#[unsafe(no_mangle)]
extern "C" fn l1_main(start_info: u32) -> ! {
    super::start(&read(start_info.into()))
}

fn read(start_info: u64) -> BootInfo {
    let info: StartInfo = copy(start_info);
    assert!(info.magic == MAGIC, "not started by a PVH loader");
    let mut usable = Ranges::new();
    for index in 0..u64::from(info.memory_entries) {
        let entry: MemoryEntry = copy(info.memory_map + index * size_of::<MemoryEntry>() as u64);
        if entry.kind == USABLE {
            let end = entry.start.saturating_add(entry.size) & !0xfff;
            usable.add(entry.start.next_multiple_of(4096)..end);
        }
    }
    let module = (info.modules > 0).then(|| {
        let module: Module = copy(info.module_list);
        module.start..module.start + module.size
    });
    let address = |symbol: *const u8| symbol as u64;
    let layout = ImageLayout {
        text: address(&raw const text_start)..address(&raw const text_end),
        rodata: address(&raw const text_end)..address(&raw const rodata_end),
        data: address(&raw const rodata_end)..address(&raw const image_end),
        guard: address(&raw const l1_stack_guard),
        base: KERNEL_BASE,
    };
    let image_physical = 0x10_0000..layout.data.end - KERNEL_BASE;
    BootInfo { usable, module, rsdp: info.rsdp, layout, image_physical }
}

/// Switches to L1's root.
pub fn activate(root: &Tree) {
    // SAFETY: the root maps L1's text, data (the stack is in it) and the direct map where they
    // are now.
    unsafe { paging::activate(root) }
}

/// Loads CPU `index`'s descriptor tables and registers.
pub fn load_cpu(index: usize, features: &Features) -> BaseAccess {
    // SAFETY: this is CPU `index`: the boot CPU is 0, and another one was told its number as it was
    // started. `percpu::prepare` has filled its area, and the root in CR3 maps the window.
    unsafe { percpu::load(index, features) }
}

/// The way into a guest on CPU `index`.
pub fn enter(index: usize, buffers: Buffers) -> Enter {
    // SAFETY: L1's root maps the areas of all CPUs that were prepared, for good.
    unsafe { Enter::of(index, buffers) }
}
