//! L1's entry: calls the reader of what the loader handed over, and switches to L1's own tables.
//! May: unsafe, asm, cr3. Context: boot. Input: the loader, trusted.
#![expect(unsafe_code, reason = "the first instructions, and memory before it is mapped")]

use super::{acpi::Root, multiboot2, pvh};
use crate::{
    hw::{cpu::BaseAccess, features::Features, percpu},
    memory::{
        paging::{self, ImageLayout, Tree},
        ranges::Ranges,
    },
};
use arrayvec::ArrayString;
use core::{arch::global_asm, ops::Range};
use switcher::enter::{Buffers, Enter};

/// L1 address minus physical address.
pub const KERNEL_BASE: u64 = 0xffff_8000_0000_0000;
/// The boot CPU's stack.
const STACK_SIZE: u64 = 256 << 10;
/// What the start-up tables map.
pub const MAPPED: u64 = 4 << 30;

/// What the entries pass on to say who has loaded L1.
const PVH: u32 = 0;
/// See [`PVH`].
const MULTIBOOT2: u32 = 1;

global_asm!(
    include_str!("pvh.S"),
    include_str!("multiboot2.S"),
    // Last, for it leaves the assembler in 64-bit mode.
    include_str!("entry.S"),
    STACK_SIZE = const STACK_SIZE,
    PVH = const PVH,
    MULTIBOOT2 = const MULTIBOOT2,
    options(att_syntax)
);

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static image_end: u8;
    static l1_stack_guard: u8;
}

/// Who has loaded L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// A machine monitor, by PVH. The tool has started it, or somebody else who reads L1's log.
    Pvh,
    /// A boot loader, by Multiboot2: this is a machine of its own.
    Multiboot2,
}

/// What a loader tells, copied out of its memory.
#[derive(Debug)]
pub struct Given {
    /// RAM.
    pub usable: Ranges,
    /// The boot module.
    pub module: Option<Range<u64>>,
    /// Where the firmware's tables start.
    pub acpi: Option<Root>,
    /// Words for L1 itself.
    pub command_line: CommandLine,
}

/// A command line: as much of it as is read.
pub type CommandLine = ArrayString<4096>;

/// The text in `bytes`, without what is no ASCII, and the last word if it is cut off.
pub fn command_line(bytes: impl Iterator<Item = u8>) -> CommandLine {
    let mut line = CommandLine::new();
    for byte in bytes {
        if line.try_push(if byte.is_ascii() { byte.into() } else { '?' }).is_err() {
            line.truncate(line.rfind(' ').unwrap_or(0));
            break;
        }
    }
    line
}

/// What L1 needs to know of the machine at start.
#[derive(Debug)]
pub struct BootInfo {
    /// Who has loaded L1.
    pub loader: Loader,
    /// What that one tells.
    pub given: Given,
    /// L1's own image.
    pub layout: ImageLayout,
    /// Where it was loaded, start-up code included.
    pub image_physical: Range<u64>,
}

/// Copies a structure of the loader's.
pub fn copy<T: Copy>(physical: u64) -> T {
    // SAFETY: the start-up tables map the first 4 GiB at KERNEL_BASE, where the loader keeps its
    // structures; they are plain integers.
    unsafe { ((KERNEL_BASE + physical) as *const T).read_unaligned() }
}

/// Called by `entry.S` in long mode, on the start-up stack and tables.
#[unsafe(no_mangle)]
extern "C" fn l1_main(address: u32, loader: u32) -> ! {
    let (loader, given) = match loader {
        PVH => (Loader::Pvh, pvh::read(address.into())),
        _ => (Loader::Multiboot2, multiboot2::read(address.into())),
    };
    let address = |symbol: *const u8| symbol as u64;
    let layout = ImageLayout {
        text: address(&raw const text_start)..address(&raw const text_end),
        rodata: address(&raw const text_end)..address(&raw const rodata_end),
        data: address(&raw const rodata_end)..address(&raw const image_end),
        guard: address(&raw const l1_stack_guard),
        base: KERNEL_BASE,
    };
    let image_physical = 0x10_0000..layout.data.end - KERNEL_BASE;
    super::start(&BootInfo { loader, given, layout, image_physical })
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
