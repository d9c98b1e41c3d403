//! Enters from a PVH loader, and leaves into L1.
//! May: unsafe, asm. Context: boot. Input: the loader, trusted.
#![expect(unsafe_code, reason = "the first instructions, and the last ones")]

use super::{acpi, console::println, l1, processors, pvh, words::Words};
use core::{arch::global_asm, ops::Range};
use x86_64::instructions::port::Port;

global_asm!(
    include_str!("entry.S"),
    MOST_OTHERS = const processors::MOST,
    OTHER_STACK = const 0x2000,
    options(att_syntax)
);

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
    fn enter_l1(entry: u32, start_info: u32) -> !;
}

/// Where this program lies.
pub fn image() -> Range<u64> {
    &raw const image_start as u64..&raw const image_end as u64
}

/// Called by `entry.S` on the boot processor.
#[unsafe(no_mangle)]
extern "C" fn firmware_main(start_info: u32) -> ! {
    let info = pvh::StartInfo::at(start_info.into());
    let words = Words::of(info.command_line());
    let (file, bundle) = info.module().split_at(words.bundle);
    let entry = l1::load(file);
    let mut madt = acpi::Madt::new();
    let others = acpi::add_mailbox(info.rsdp, &words, &mut madt) - 1;
    processors::park(others, &words);
    println!("firmware: {others} processors are parked");
    let mut given = pvh::ForL1::of(&info, bundle, words.low);
    // SAFETY: L1 has been loaded; what it is given lies on this stack, which is not RAM to it.
    unsafe { enter_l1(entry, given.place()) }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("firmware: {info}");
    // SAFETY: QEMU's port that ends it.
    unsafe { Port::new(0xf4).write(0x14_u8) };
    loop {
        x86_64::instructions::hlt();
    }
}
