//! Logs what a shim writes through its VM window: the D bits of the window's own entries.
//! May: take-frame. Context: run-loop, and whoever copies the guest's memory.
//!
//! While the log is on, guest memory is mapped by small pages where there is memory for their
//! tables; a block that stays large is told of as a whole. A look takes the D bits, and then every
//! TLB is flushed: one may hold a translation that is dirty already, which sets no D bit when it is
//! used. What was written through it by then is in a page that the look tells of; after that the
//! next write sets the bit for the next look.
//!
//! A large entry and the table of small ones that takes its place map the same frames with the same
//! permissions, and a table stays its block's for good. So it does no harm if a CPU goes by the old
//! one until its next flush.

use super::{
    ram::GuestRam,
    vm_window::{MEMORY_FLAGS, VmWindow, block_number, memory_address},
};
use crate::{
    hw::physmap::frame,
    memory::{
        paging::bits::{A, ADDRESS, D, P, PS, U, W},
        take_zeroed,
    },
};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Release},
};
use pv_abi::addr::{Gfn, Hpa};

impl VmWindow {
    /// Starts the log. The caller flushes every TLB before it relies on it.
    pub fn start_log(&self, ram: &GuestRam) {
        let mut small = self.small.lock();
        small.resize(ram.blocks().map(block_number).max().map_or(0, |last| last + 1), None);
        for block in ram.blocks() {
            let table = &mut small[block_number(block)];
            *table = table.or_else(|| small_pages(ram, block));
            let (Some(table), Some(entry)) = (*table, self.block_entry(block)) else { continue };
            entry.store(table.0 | U | W | P | A, Release);
        }
        self.for_each_writable(|entry, _| {
            entry.fetch_and(!D, AcqRel);
        });
    }

    /// Calls `wrote` with each frame that was written, or may have been, since the log was started or
    /// taken; true if there was one. The caller flushes every TLB then, before it reads the frames.
    #[must_use]
    pub fn take_log(&self, ram: &GuestRam, mut wrote: impl FnMut(Gfn)) -> bool {
        let _small = self.small.lock();
        let mut any = false;
        self.for_each_writable(|entry, level| {
            if entry.load(Acquire) & D == 0 {
                return;
            }
            let first = ram.guest_frame(Hpa(entry.fetch_and(!D, AcqRel) & ADDRESS));
            (0..1 << (9 * (level - 1))).for_each(|frame| wrote(Gfn(first.0 + frame)));
            any = true;
        });
        any
    }

    /// Ends the log: guest memory is mapped by large pages again.
    pub fn stop_log(&self, ram: &GuestRam) {
        let _small = self.small.lock();
        for block in ram.blocks() {
            let (Some(entry), Some(hpa)) = (self.block_entry(block), ram.host_frame(block)) else {
                continue;
            };
            entry.store(hpa.0 | MEMORY_FLAGS | PS | P | A, Release);
        }
        // Nobody looks at D: the CPU need not set it.
        self.for_each_writable(|entry, _| {
            entry.fetch_or(D, AcqRel);
        });
    }

    /// The level-2 entry for `block` of guest memory.
    fn block_entry(&self, block: Gfn) -> Option<&'static AtomicU64> {
        let address = memory_address(block);
        self.slot_of(address).entry_at(address, 2)
    }

    /// Calls `visit` with each entry that lets the shim write, and its level.
    fn for_each_writable(&self, mut visit: impl FnMut(&AtomicU64, u8)) {
        for tree in &self.slots {
            each_writable(tree.table, tree.level, &mut visit);
        }
    }
}

fn each_writable(table: Hpa, level: u8, visit: &mut impl FnMut(&AtomicU64, u8)) {
    for slot in frame(table) {
        let entry = slot.load(Acquire);
        if entry & P == 0 {
            continue;
        }
        if level > 1 && entry & PS == 0 {
            each_writable(Hpa(entry & ADDRESS), level - 1, visit);
        } else if entry & W != 0 {
            visit(slot, level);
        }
    }
}

/// A table that maps `block` by small pages, if there is memory for one.
fn small_pages(ram: &GuestRam, block: Gfn) -> Option<Hpa> {
    let (table, first) = (take_zeroed()?, ram.host_frame(block)?);
    for (page, entry) in frame(table).iter().enumerate() {
        entry.store(first.offset((page as u64) << 12).0 | MEMORY_FLAGS | P | A, Release);
    }
    Some(table)
}
