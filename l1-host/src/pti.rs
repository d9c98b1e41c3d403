//! Page-table isolation: whether L1's memory is out of every guest's root, or L1 stays on the guest's root
//! while it serves an exit.
//! May: nothing. Context: boot; [`is_off`]: any.
//!
//! With isolation each way out of a guest and back is two loads of CR3. Without it there is none, unless
//! the guest changes its own root or its mode: what keeps L1's memory from the guest is then that its
//! entries are supervisor's, and the CPU's word that it does not read through those (`docs/security.md`).

use crate::{boot::cpus, hw::mitigations, log};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use pv_abi::bundle::Pti;

static OFF: AtomicBool = AtomicBool::new(false);

/// Decides, before any guest is built.
pub fn choose(wanted: Pti) {
    let affected = mitigations::reads_through_privilege();
    let off = match wanted {
        Pti::On => false,
        Pti::Auto => !affected,
        Pti::Off => true,
    };
    if off {
        if affected {
            log!("page-table isolation is off on a CPU with Meltdown: guests can read all memory");
        }
        cpus::stay_on_guests_roots();
        OFF.store(true, Relaxed);
    }
    log!("page-table isolation: {}", if off { "off" } else { "on" });
}

/// L1 stays on the root of the guest that it has left.
#[inline]
#[must_use]
pub fn is_off() -> bool {
    OFF.load(Relaxed)
}
