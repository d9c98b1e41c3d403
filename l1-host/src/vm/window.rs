//! Builds what L1 itself maps into a VM's roots: its half of the switcher window, and for stock
//! kernels the VM window.
//! May: nothing (page tables through [`Tree`]). Context: boot; PVCS and LDT pages at run time.

use crate::{
    hw::physmap::frame,
    memory::{
        paging::{
            NoMemory, Tree,
            bits::{A, D, NX, P, U, W},
        },
        take_zeroed,
    },
};
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    addr::{Gfn, Hpa},
    bundle::Image,
    ext::{WindowFrames, window},
};
use switcher::layout;

use super::ram::{BLOCK, GuestRam};

/// A VM's switcher window: the half that all VMs share, and the PVCS and LDT pages of its vCPUs.
#[derive(Debug)]
pub struct SwitcherWindow {
    tree: Tree,
    /// Leaf tables of the second half, by vCPU: one 2 MiB region holds 16 of them.
    tables: Vec<Hpa>,
}

const VCPUS_PER_TABLE: usize = (0x20_0000 / layout::VCPU_STRIDE) as usize;

impl SwitcherWindow {
    /// A window without any PVCS.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(shared: &Tree, vcpus: usize) -> Result<Self, NoMemory> {
        let tree = Tree::new(3)?;
        let areas = frame(shared.table)[0].load(Relaxed);
        frame(tree.table)[0].store(areas, Relaxed);
        let mut tables = Vec::new();
        let directory = take_zeroed().ok_or(NoMemory)?;
        frame(tree.table)[1].store(directory.0 | P | W | A, Relaxed);
        for index in 0..vcpus.div_ceil(VCPUS_PER_TABLE) {
            let table = take_zeroed().ok_or(NoMemory)?;
            frame(directory)[index].store(table.0 | P | W | A, Relaxed);
            tables.push(table);
        }
        Ok(Self { tree, tables })
    }

    /// The entry of PML4 slot [`layout::SLOT`].
    pub fn entry(&self) -> u64 {
        self.tree.entry()
    }

    /// Maps `hpa` as vCPU `index`'s PVCS, or nothing. A flush must follow.
    pub fn set_pvcs(&self, index: usize, hpa: Option<Hpa>) {
        self.set(index, layout::VCPU_PVCS, hpa.map(|hpa| hpa.0 | P | W | A | D | NX));
    }

    /// Maps `hpa` as page `page` of vCPU `index`'s LDT, or nothing. A flush must follow.
    pub fn set_ldt(&self, index: usize, page: u64, hpa: Option<Hpa>) {
        self.set(index, layout::VCPU_LDT + page * 4096, hpa.map(|hpa| hpa.0 | P | A | NX));
    }

    /// Maps the VM's half in `shared`, the window of L1's own root, as well: L1 loads selectors for
    /// the guest, and the CPU then reads its LDT on L1's CR3.
    pub fn show_in(&self, shared: &Tree) {
        let half = frame(self.tree.table)[1].load(Relaxed);
        frame(shared.table)[1].store(half, Relaxed);
    }

    fn set(&self, index: usize, offset: u64, entry: Option<u64>) {
        let table = self.tables[index / VCPUS_PER_TABLE];
        let address = (index % VCPUS_PER_TABLE) as u64 * layout::VCPU_STRIDE + offset;
        frame(table)[(address / 4096) as usize].store(entry.unwrap_or(0), Relaxed);
    }
}

/// Builds the VM window over `ram`, which includes the window's own `frames`; returns the root
/// entries of its slots.
///
/// # Errors
/// [`NoMemory`].
pub fn vm_window(
    ram: &GuestRam,
    frames: &WindowFrames,
    image: &Image,
    vcpus: usize,
) -> Result<Vec<(usize, u64, bool)>, NoMemory> {
    let slots = (window::FIRST_SLOT..=window::LAST_SLOT)
        .map(|_| Tree::for_guest(3))
        .collect::<Result<Vec<_>, _>>()?;
    let slot_of = |address: u64| &slots[((address - window::BASE) >> 39) as usize];
    let map = |address: u64, gfn: u64, flags: u64| {
        let hpa = ram.host_frame(Gfn(gfn)).expect("window frames are RAM");
        slot_of(address).map(address, hpa, 1, flags | U)
    };

    map(window::BOOT, frames.boot, NX)?;
    let mut gfn = frames.image;
    for segment in &image.segments {
        let flags = if segment.write { W | D } else { 0 } | if segment.execute { 0 } else { NX };
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
    map_memory(ram, slot_of)?;
    Ok(slots
        .iter()
        .enumerate()
        .map(|(index, tree)| (window::FIRST_SLOT + index, tree.entry(), false))
        .collect())
}

/// Offsets of an area's own pages, in the order of their frames.
pub fn area_pages() -> impl Iterator<Item = u64> {
    use window::area::{DATA, NOTES, PVCS, STACK, STACK_TOP};
    [PVCS, DATA, NOTES].into_iter().chain((STACK..STACK_TOP).step_by(4096))
}

/// The map of all guest memory, in 2 MiB pages.
fn map_memory<'a>(ram: &GuestRam, slot_of: impl Fn(u64) -> &'a Tree) -> Result<(), NoMemory> {
    for extent in ram.extents() {
        for page in (0..extent.frames).step_by(BLOCK as usize) {
            let address = window::MEMORY + ((extent.gfn + page) << 12);
            let hpa = Hpa((extent.host + page) << 12);
            slot_of(address).map(address, hpa, 2, U | W | D | NX)?;
        }
    }
    Ok(())
}
