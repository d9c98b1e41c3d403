//! Walks every live shadow root and compares what it maps of L1 with the allow-list.
//! May: nothing. Context: run-loop; a check, not a mechanism.

use super::Vm;
use crate::{
    boot::cpus,
    hw::physmap::frame,
    log,
    memory::paging::bits::{ADDRESS, NX, P, PS, U, W},
    pti,
};
use core::{fmt, sync::atomic::Ordering::Relaxed};
use pv_abi::{addr::Hpa, ext::window};
use switcher::layout::{self, Access};

/// What a walk has seen.
#[derive(Debug, Default)]
pub struct Tally {
    roots: u64,
    guest_leaves: u64,
    window_leaves: u64,
    /// Entries that no root may have.
    pub violations: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { roots, guest_leaves, window_leaves, violations } = self;
        write!(
            f,
            "root check: {roots} roots, {guest_leaves} guest leaves, {window_leaves} window leaves, \
             {violations} violations"
        )
    }
}

/// Checks all live roots of `vm`.
///
/// The rules: a leaf in the switcher window is on the switcher's allow-list, supervisor-only and
/// no more permissive than the list says. Every other leaf is a user leaf of a frame that the VM
/// owns; slots 264 to 271 appear in supervisor roots only. Every other slot of L1's is empty, or, without
/// page-table isolation, what it is in L1's root.
pub fn check(vm: &Vm) -> Tally {
    let mut tally = Tally::default();
    vm.mmu.for_each_root(|table, user_mode| {
        tally.roots += 1;
        for slot in 0..512 {
            let entry = frame(table)[slot].load(Relaxed);
            if entry & P == 0 {
                continue;
            }
            let base = if slot >= 256 { 0xffff_0000_0000_0000 } else { 0 } | (slot as u64) << 39;
            let vm_window = (window::FIRST_SLOT..=window::LAST_SLOT).contains(&slot);
            let l1 = (256..window::FIRST_SLOT).contains(&slot);
            if l1 && pti::is_off() && cpus::root_entries().any(|own| own == (slot, entry)) {
                continue;
            }
            if l1 && slot != layout::SLOT || vm_window && user_mode {
                tally.violations += 1;
                log!("root check: slot {slot} of {table:?} is mapped");
            } else {
                walk(vm, Hpa(entry & ADDRESS), 3, base, entry & U != 0, &mut tally);
            }
        }
    });
    tally
}

fn walk(vm: &Vm, table: Hpa, level: u8, base: u64, user: bool, tally: &mut Tally) {
    for index in 0..512u64 {
        let entry = frame(table)[index as usize].load(Relaxed);
        if entry & P == 0 {
            continue;
        }
        let address = base | index << (12 + 9 * (u32::from(level) - 1));
        let user = user && entry & U != 0;
        if level > 1 && entry & PS == 0 {
            walk(vm, Hpa(entry & ADDRESS), level - 1, address, user, tally);
            continue;
        }
        let fine = if address >> 39 & 511 == layout::SLOT as u64 {
            tally.window_leaves += 1;
            !user && is_window_leaf(vm, address, entry)
        } else {
            tally.guest_leaves += 1;
            user && is_guest_leaf(vm, entry, level)
        };
        if !fine {
            tally.violations += 1;
            log!("root check: {address:#x} -> {entry:#x} at level {level}");
        }
    }
}

fn is_window_leaf(vm: &Vm, address: u64, entry: u64) -> bool {
    match layout::is_allowed(address, cpus::areas(), vm.vcpus) {
        Some(Access::Text) => entry & W == 0,
        Some(Access::ReadOnly) => entry & W == 0 && entry & NX != 0,
        Some(Access::ReadWrite) => entry & NX != 0,
        None => false,
    }
}

/// The frame, or each frame of the large page, is the VM's.
fn is_guest_leaf(vm: &Vm, entry: u64, level: u8) -> bool {
    let frames = 1u64 << (9 * (u32::from(level) - 1));
    let first = (entry & ADDRESS) >> 12 & !(frames - 1);
    vm.env()
        .ram
        .extents()
        .iter()
        .any(|extent| extent.host <= first && first + frames <= extent.host + extent.frames)
}
