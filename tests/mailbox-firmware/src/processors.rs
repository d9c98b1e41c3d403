//! Parks the other processors before the mailbox.
//! May: unsafe. Context: boot, a parked processor. Input: the machine, trusted.
#![expect(unsafe_code, reason = "start-up code, the APIC's registers")]

use super::{mailbox, words::Words};
use core::{
    arch::x86_64::_rdtsc,
    sync::atomic::{
        AtomicU32, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};
use raw_cpuid::CpuId;

/// Most processors that can be parked.
pub const MOST: usize = 15;
/// Where they start: a page below 1 MiB.
const TRAMPOLINE: u64 = 0x2_0000;

/// The APIC's low half of the interrupt command.
const COMMAND: *mut u32 = 0xfee0_0300 as *mut u32;
/// To all but the sender, asserted.
const OTHERS: u32 = 0xc_4000;
const INIT: u32 = 0x500;
const STARTUP: u32 = 0x600;
/// Enough of any TSC for 10 ms.
const PAUSE: u64 = 100_000_000;

/// APIC id of the one that takes no command.
static DEAF: AtomicU32 = AtomicU32::new(u32::MAX);
/// APIC id of the one that goes late.
static LATE: AtomicU32 = AtomicU32::new(u32::MAX);
/// How many are parked.
static PARKED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

/// Parks the other `count` processors.
pub fn park(count: usize, words: &Words) {
    assert!(count <= MOST, "there are {count} other processors");
    DEAF.store(words.deaf.unwrap_or(u32::MAX), Relaxed);
    LATE.store(words.late.unwrap_or(u32::MAX), Relaxed);
    let code = &raw const trampoline;
    let length = &raw const trampoline_end as usize - code as usize;
    // SAFETY: 1. The page is RAM below 1 MiB that nobody has a use for any more.
    // 2. The register is the APIC's, which sends what is written.
    unsafe {
        (TRAMPOLINE as *mut u8).copy_from_nonoverlapping(code, length);
        COMMAND.write_volatile(OTHERS | INIT);
        let start = _rdtsc();
        while _rdtsc() - start < PAUSE {}
        COMMAND.write_volatile(OTHERS | STARTUP | (TRAMPOLINE >> 12) as u32);
    }
    while PARKED.load(Acquire) < count {
        core::hint::spin_loop();
    }
}

/// Called by `entry.S` on each of them, on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn other_main() -> ! {
    let id = CpuId::new().get_feature_info().map(|info| info.initial_local_apic_id());
    let id = id.expect("CPUID tells it").into();
    PARKED.fetch_add(1, Release);
    if id == DEAF.load(Relaxed) {
        loop {
            x86_64::instructions::hlt();
        }
    }
    mailbox::wait(id, id == LATE.load(Relaxed))
}
