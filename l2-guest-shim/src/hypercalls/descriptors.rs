//! Descriptor tables.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.
//!
//! The CPU runs on L1's tables. Of the kernel's, only the thread-local-storage and CPU-number
//! descriptors have an effect; the rest is stored where the kernel keeps it, for it to read back.

use crate::{
    hw::{area::Area, call, copy, memory},
    xen::errno::{EFAULT, EINVAL},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::selectors::{CPUNODE_SLOT, TLS_SLOTS};

/// `set_gdt(frames, entries)`.
pub extern "C" fn set_gdt(frames: u64, _: u64, _: u64, _: u64, _: u64, area: Area) -> i64 {
    match copy::read::<u64>(frames) {
        Ok(frame) => {
            area.data().gdt_frame.store(frame, Relaxed);
            0
        }
        Err(_) => EFAULT,
    }
}

/// `update_descriptor(machine address, descriptor)`.
pub extern "C" fn update_descriptor(
    at: u64,
    descriptor: u64,
    _: u64,
    _: u64,
    _: u64,
    area: Area,
) -> i64 {
    let Some(word) = memory::word(at) else { return EINVAL };
    word.store(descriptor, Relaxed);
    let data = area.data();
    if at >> 12 != data.gdt_frame.load(Relaxed) {
        return 0;
    }
    let slot = (at & 0xfff) as usize / 8;
    if TLS_SLOTS.contains(&slot) {
        data.tls[slot - TLS_SLOTS.start].store(descriptor, Relaxed);
        let [first, second, third] = &data.tls;
        call::load_tls([first.load(Relaxed), second.load(Relaxed), third.load(Relaxed)]);
    } else if slot == CPUNODE_SLOT {
        call::set_cpunode(descriptor);
    }
    0
}
