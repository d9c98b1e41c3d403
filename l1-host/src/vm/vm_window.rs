//! Builds the VM window: L1's own map, in every supervisor root of a stock kernel's VM, of the shim
//! and of all guest memory.
//! May: nothing (page tables through [`Tree`]). Context: boot.

use super::ram::{BLOCK, GuestRam};
use crate::memory::{
    self,
    paging::{
        NoMemory, Tree,
        bits::{D, NX, U, W},
    },
};
use alloc::vec::Vec;
use pv_abi::{
    addr::{Gfn, Hpa},
    bundle::Image,
    ext::{WindowFrames, window},
};
use spin::Mutex;

/// What a page of guest memory is mapped with.
pub(super) const MEMORY_FLAGS: u64 = U | W | D | NX;

/// A VM's window.
#[derive(Debug)]
pub struct VmWindow {
    /// The trees of its root slots.
    pub(super) slots: Vec<Tree>,
    /// Tables that map a block of guest memory by small pages, by block: made when a dirty log
    /// first asks for them, and kept.
    pub(super) small: Mutex<Vec<Option<Hpa>>>,
}

impl VmWindow {
    /// The window over `ram`, which includes the window's own `frames`.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(
        ram: &GuestRam,
        frames: &WindowFrames,
        image: &Image,
        vcpus: usize,
    ) -> Result<Self, NoMemory> {
        let slots = (window::FIRST_SLOT..=window::LAST_SLOT)
            .map(|_| Tree::for_guest(3))
            .collect::<Result<Vec<_>, _>>()?;
        let built = Self { slots, small: Mutex::default() };
        built.map_shim(ram, frames, image, vcpus)?;
        for block in ram.blocks() {
            let hpa = ram.host_frame(block).expect("a block of the VM's");
            let address = memory_address(block);
            built.slot_of(address).map(address, hpa, 2, MEMORY_FLAGS)?;
        }
        Ok(built)
    }

    /// Gives its tables back: no root refers to them any more, and no log is on.
    pub fn free(&self) {
        for table in self.small.lock().drain(..).flatten() {
            memory::give_frame(table);
        }
        for slot in &self.slots {
            slot.free();
        }
    }

    /// The root entries of its slots.
    pub fn entries(&self) -> impl Iterator<Item = (usize, u64, bool)> {
        let slots = self.slots.iter().enumerate();
        slots.map(|(index, tree)| (window::FIRST_SLOT + index, tree.entry(), false))
    }

    /// The tree that `address` lies in.
    pub(super) fn slot_of(&self, address: u64) -> &Tree {
        &self.slots[((address - window::BASE) >> 39) as usize]
    }

    /// Maps the shim, its pages for each vCPU, and what it may read.
    fn map_shim(
        &self,
        ram: &GuestRam,
        frames: &WindowFrames,
        image: &Image,
        vcpus: usize,
    ) -> Result<(), NoMemory> {
        let map = |address: u64, gfn: u64, flags: u64| {
            let hpa = ram.host_frame(Gfn(gfn)).expect("window frames are RAM");
            self.slot_of(address).map(address, hpa, 1, flags | U)
        };
        map(window::BOOT, frames.boot, NX)?;
        let mut gfn = frames.image;
        for segment in &image.segments {
            let flags =
                if segment.write { W | D } else { 0 } | if segment.execute { 0 } else { NX };
            for page in 0..segment.memory.div_ceil(4096) {
                let address = segment.addr + page * 4096;
                // Entry text is one copy with an alias in every vCPU's area.
                let aliases = if address >= window::VCPU_AREA { vcpus as u64 } else { 1 };
                for alias in 0..aliases {
                    map(address + alias * window::VCPU_STRIDE, gfn, flags)?;
                }
                gfn += 1;
            }
        }
        for index in 0..vcpus {
            let base = window::VCPU_AREA + index as u64 * window::VCPU_STRIDE;
            for (own, offset) in area_pages().enumerate() {
                map(base + offset, frames.area(index) + own as u64, W | D | NX)?;
            }
        }
        for page in 0..frames.m2p - frames.bitmap {
            map(window::TABLE_BITMAP + page * 4096, frames.bitmap + page, NX)?;
        }
        for page in 0..frames.end - frames.m2p {
            map(window::M2P + page * 4096, frames.m2p + page, NX)?;
        }
        Ok(())
    }
}

/// Where the shim finds `block`, the first frame of one.
pub(super) const fn memory_address(block: Gfn) -> u64 {
    window::MEMORY + block.gpa().0
}

/// Number of the block that starts at `gfn`.
pub(super) const fn block_number(gfn: Gfn) -> usize {
    (gfn.0 / BLOCK) as usize
}

/// Offsets of an area's own pages, in the order of their frames.
pub fn area_pages() -> impl Iterator<Item = u64> {
    use window::area::{DATA, NOTES, PVCS, STACK, STACK_TOP};
    [PVCS, DATA, NOTES].into_iter().chain((STACK..STACK_TOP).step_by(4096))
}
