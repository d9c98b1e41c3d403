//! Stack and segment bases.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use crate::{
    hw::{area::Area, call},
    xen::{
        errno::EINVAL,
        segbase::{FS, GS_KERNEL, GS_USER, GS_USER_SEL},
    },
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{addr::Gva, msr::arch};

/// `stack_switch(ss, sp)`: where frames of user mode go.
pub extern "C" fn stack_switch(_: u64, sp: u64, _: u64, _: u64, _: u64, area: Area) -> i64 {
    area.data().kernel_sp.store(sp & !0xf, Relaxed);
    0
}

/// `set_segment_base(which, base)`.
pub extern "C" fn set_segment_base(
    which: u64,
    base: u64,
    _: u64,
    _: u64,
    _: u64,
    area: Area,
) -> i64 {
    if which != GS_USER_SEL && !Gva(base).is_canonical() {
        return EINVAL;
    }
    match which {
        FS => {
            call::wrmsr(arch::FS_BASE, base);
        }
        GS_USER => area.set_user_gsbase(base),
        GS_KERNEL => {
            call::wrmsr(arch::KERNEL_GS_BASE, base);
            call::wrmsr(arch::GS_BASE, base);
        }
        GS_USER_SEL => area.set_user_gsbase(call::load_gs(base & 0xffff)),
        _ => return EINVAL,
    }
    0
}
