//! Walks tables without changing them: the shadow ones as the hardware does, and the guest's.
//! May: guest-memory. Context: run-loop. Input: guest-controlled.

use super::cache::{Leaf, Page};
use crate::{
    hw::physmap,
    vm::{Vm, env::VmEnv},
};
use core::sync::atomic::Ordering::Acquire;
use pv_abi::addr::{Gfn, Gpa, Gva, Hpa};
use shadow_mmu::{
    GuestMemory,
    pte::{A, ADDRESS, D, GuestPte, NX, P, PS, U, W},
    walk::Paging,
};

/// What the shadow tables say of a page.
#[derive(Clone, Copy, Debug)]
pub struct Shadow {
    /// The leaf entry, with W and NX as all levels have them.
    pub entry: u64,
    /// The same as it is.
    pub raw: u64,
    /// Its level.
    pub level: u8,
    /// Where it lies.
    pub at: (Hpa, usize),
    /// W and NX as the levels above have them.
    pub limits: u64,
}

/// `entry` under `limits`: W if both have it, NX if one has.
const fn limited(entry: u64, limits: u64) -> u64 {
    entry & (limits | !W) | limits & NX
}

/// The entry that maps `page` below `table`, which is at `level` and reached under `limits`. Every
/// entry on the way has the bits `needed`: without A, the hardware has not used it lately.
pub fn shadow(
    mut table: Hpa,
    mut level: u8,
    mut limits: u64,
    page: Page,
    needed: u64,
) -> Option<Shadow> {
    let gva = Gva(page << 12);
    loop {
        let at = (table, gva.index(level));
        let raw = physmap::frame(table)[at.1].load(Acquire);
        if raw & needed != needed {
            return None;
        }
        let entry = limited(raw, limits);
        if level == 1 || raw & PS != 0 {
            return Some(Shadow { entry, raw, level, at, limits });
        }
        (table, level, limits) = (Hpa(raw & ADDRESS), level - 1, entry & (W | NX));
    }
}

/// Limits of a root: none.
pub const UNLIMITED: u64 = W;
/// What the hardware needs of an entry that it uses for a guest, and has used.
pub const USED: u64 = P | U | A;

/// What the guest's tables say of a page.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// The leaf entry.
    pub leaf: GuestPte,
    /// Its level.
    pub level: u8,
    /// Bits that every entry on the way has.
    every: u64,
    /// Bits that some entry on the way has.
    any: u64,
    gfn: Gfn,
}

/// Walks the guest's tables below `root`.
pub fn guest(env: &VmEnv, paging: Paging, root: Gfn, page: Page) -> Option<Guest> {
    let gva = Gva(page << 12);
    let (mut table, mut every, mut any) = (root, !0, 0);
    for level in (1..=4).rev() {
        let at: Gpa = table.gpa().offset(8 * gva.index(level) as u64);
        let entry = GuestPte(env.load(at)?);
        if !entry.present() || paging.is_reserved(entry, level) {
            return None;
        }
        every &= entry.0;
        any |= entry.0;
        table = entry.gfn();
        if level == 1 || entry.is_large(level) {
            let inside = (1 << (9 * (u32::from(level) - 1))) - 1;
            let gfn = Gfn(entry.gfn().0 & !inside | page & inside);
            return Some(Guest { leaf: entry, level, every, any, gfn });
        }
    }
    None
}

/// Why the guest's tables below `root` do not allow `leaf`, which is cached for `page` (the first of
/// its pages) and for user mode or not; `None` if they do.
pub fn forbids(vm: &Vm, root: Gfn, page: Page, leaf: &Leaf, user: bool) -> Option<&'static str> {
    let paging = vm.mmu.paging();
    let Some(guest) = guest(vm.env(), paging, root, page) else { return Some("is not mapped") };
    let has = |bits| guest.every & bits == bits;
    let writes = leaf.entry & W != 0;
    let executes = leaf.entry & NX == 0;
    if vm.env().ram.host_frame(guest.gfn) != Some(leaf.frame(page, page)) {
        Some("is another frame")
    } else if guest.level < leaf.level {
        Some("is a smaller page")
    } else if !has(A) {
        Some("was not accessed, say the A bits")
    } else if user && !has(U) {
        Some("is the kernel's")
    } else if writes && !has(W) {
        Some("is not writable")
    } else if writes && !guest.leaf.has(D) {
        Some("was not written, says the D bit")
    } else if executes && guest.any & NX != 0 || executes && !user && paging.smep && has(U) {
        Some("is not executable")
    } else {
        None
    }
}
