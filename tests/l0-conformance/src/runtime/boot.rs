//! Starts the program from what a PVH loader hands over.
//! May: unsafe, asm. Context: boot. Input: the loader, trusted.
#![expect(unsafe_code, reason = "the first instructions, and the loader's structures")]

use super::{apic, idt, ram, smp};
use core::{arch::global_asm, ops::Range};
use l0_conformance::usable::Usable;

/// Bytes of the boot CPU's stack.
const STACK_SIZE: u64 = 256 << 10;
/// Longest command line that is read.
const COMMAND_LINE: usize = 1024;

global_asm!(
    include_str!("entry.S"),
    STACK_SIZE = const STACK_SIZE,
    TRAMPOLINE = const smp::TRAMPOLINE,
    options(att_syntax)
);

unsafe extern "C" {
    static image_start: u8;
    static constant_end: u8;
    static image_end: u8;
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
    // SAFETY: the first 4 GiB are mapped where they lie; the loader keeps its structures there;
    // they are plain integers.
    unsafe { (physical as *const T).read_unaligned() }
}

/// First Rust function of the boot CPU, called by `entry.S`.
#[unsafe(no_mangle)]
extern "C" fn main_cpu(start_info: u32) -> ! {
    idt::init();
    let info: StartInfo = copy(start_info.into());
    assert!(info.magic == MAGIC, "not started by a PVH loader");
    let usable = usable(&info);
    let mut text = [0; COMMAND_LINE];
    let mut length = 0;
    while info.command_line != 0 && length < text.len() {
        match copy::<u8>(info.command_line + length as u64) {
            0 => break,
            byte => text[length] = byte,
        }
        length += 1;
    }
    let command_line = core::str::from_utf8(&text[..length]).unwrap_or("?");
    ram::init(usable.largest(&raw const image_end as u64));
    smp::init();
    apic::init();
    crate::run(command_line, &usable)
}

fn usable(info: &StartInfo) -> Usable {
    let mut usable = Usable::default();
    for index in 0..u64::from(info.memory_entries) {
        let entry: MemoryEntry = copy(info.memory_map + index * size_of::<MemoryEntry>() as u64);
        let range = entry.start..entry.start.saturating_add(entry.size);
        match entry.kind {
            USABLE => usable.add(range),
            _ => usable.add_other(range),
        }
    }
    usable
}

/// The program's code and constants.
pub fn constants() -> Range<u64> {
    &raw const image_start as u64..&raw const constant_end as u64
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::println!("Bail out! {info}");
    super::end::machine(super::end::End::Failed)
}
