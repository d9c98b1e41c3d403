//! Builds L1's own page tables and the parts of the switcher window that all VMs share.
//! May: unsafe, cr3. Context: boot.
#![expect(unsafe_code, reason = "page tables and CR3")]

use super::{give_frame, take_zeroed};
use crate::hw::{
    features::Features,
    percpu::AreaFrames,
    physmap::{DIRECT_MAP, Frame, frame},
};
use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use pv_abi::addr::Hpa;
use switcher::{
    enter::Text,
    layout::{self, area},
};
use x86_64::{
    PhysAddr,
    registers::control::{Cr3, Cr3Flags},
    structures::paging::PhysFrame,
};

/// Bits of L1's own entries.
pub mod bits {
    #![expect(missing_docs, reason = "the names are the manual's")]
    pub const P: u64 = 1;
    pub const W: u64 = 2;
    pub const U: u64 = 4;
    pub const PCD: u64 = 1 << 4;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const NX: u64 = 1 << 63;
    /// Physical address of a frame.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}
use bits::{A, ADDRESS, D, NX, P, PCD, PS, W};

/// L1 ran out of memory before it had started.
#[derive(Clone, Copy, Debug)]
pub struct NoMemory;

/// A tree of page tables that L1 writes itself: its own root, or a subtree of a guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The topmost table.
    pub table: Hpa,
    /// Its level: 4 for a root, 3 for what a root's slot points to.
    pub level: u8,
    /// Bits of links: U for a subtree that guests reach.
    link: u64,
}

const fn index(address: u64, level: u8) -> usize {
    ((address >> (12 + 9 * (level as u32 - 1))) & 511) as usize
}

impl Tree {
    /// An empty tree for L1 alone.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(level: u8) -> Result<Self, NoMemory> {
        Ok(Self { table: take_zeroed().ok_or(NoMemory)?, level, link: P | W | A })
    }

    /// An empty tree whose leaves may be visible at CPL3.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn for_guest(level: u8) -> Result<Self, NoMemory> {
        Ok(Self { link: P | W | A | bits::U, ..Self::new(level)? })
    }

    /// Maps one page of the size that `level` stands for (1: 4 KiB, 2: 2 MiB, 3: 1 GiB).
    ///
    /// # Errors
    /// [`NoMemory`].
    ///
    /// # Panics
    /// The address lies in a larger page that is mapped already.
    pub fn map(&self, address: u64, to: Hpa, level: u8, flags: u64) -> Result<(), NoMemory> {
        let mut table: &Frame = frame(self.table);
        for above in (level + 1..=self.level).rev() {
            let slot = &table[index(address, above)];
            if slot.load(Relaxed) & P == 0 {
                let next = take_zeroed().ok_or(NoMemory)?;
                slot.store(next.0 | self.link, Relaxed);
            }
            let entry = slot.load(Relaxed);
            assert!(entry & PS == 0, "{address:#x} is mapped twice");
            table = frame(Hpa(entry & ADDRESS));
        }
        let size = if level > 1 { PS } else { 0 };
        table[index(address, level)].store(to.0 | flags | size | P | A, Relaxed);
        Ok(())
    }

    /// The entry for `address` at `level`, if tables lead there.
    #[must_use]
    pub fn entry_at(&self, address: u64, level: u8) -> Option<&'static AtomicU64> {
        let mut table = self.table;
        for above in (level + 1..=self.level).rev() {
            let entry = frame(table)[index(address, above)].load(Relaxed);
            table = (entry & (P | PS) == P).then_some(Hpa(entry & ADDRESS))?;
        }
        Some(&frame(table)[index(address, level)])
    }

    /// Gives the tables of this tree back, which nothing refers to any more; what they map is left alone.
    pub fn free(self) {
        free_tables(self.table, self.level);
    }

    /// Hangs `subtree` into this tree, or another's table into several.
    pub fn link(&self, address: u64, subtree: &Self) {
        debug_assert!(subtree.level + 1 == self.level);
        frame(self.table)[index(address, self.level)].store(subtree.entry(), Relaxed);
    }

    /// Another root with the same entries: what is mapped below them later is mapped in both.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn fork(&self) -> Result<Self, NoMemory> {
        let copy = Self { table: take_zeroed().ok_or(NoMemory)?, ..*self };
        for (to, from) in frame(copy.table).iter().zip(frame(self.table)) {
            to.store(from.load(Relaxed), Relaxed);
        }
        Ok(copy)
    }

    /// The entry that links this tree from above.
    #[must_use]
    pub const fn entry(&self) -> u64 {
        self.table.0 | self.link
    }
}

fn free_tables(table: Hpa, level: u8) {
    if level > 1 {
        for slot in frame(table) {
            let entry = slot.load(Relaxed);
            if entry & (P | PS) == P {
                free_tables(Hpa(entry & ADDRESS), level - 1);
            }
        }
    }
    give_frame(table);
}

/// What L1's root needs to know of the image it was linked into.
#[derive(Clone, Debug)]
pub struct ImageLayout {
    /// L1 addresses of its parts.
    pub text: Range<u64>,
    /// Read-only data follows the text.
    pub rodata: Range<u64>,
    /// Data and bss follow.
    pub data: Range<u64>,
    /// The page below the boot stack: stays unmapped.
    pub guard: u64,
    /// L1 address minus physical address.
    pub base: u64,
}

/// L1's root: the image, the direct map of `ram` and of the `devices` pages, and the window.
///
/// # Errors
/// [`NoMemory`].
pub fn build_root(
    image: &ImageLayout,
    ram: impl Iterator<Item = Range<u64>>,
    devices: &[u64],
    features: &Features,
) -> Result<Tree, NoMemory> {
    let root = Tree::new(4)?;
    let parts = [(&image.text, 0), (&image.rodata, NX), (&image.data, W | D | NX)];
    for (range, flags) in parts {
        for address in range.clone().step_by(4096).filter(|&page| page != image.guard) {
            root.map(address, Hpa(address - image.base), 1, flags)?;
        }
    }
    for range in ram {
        map_direct(&root, range, features)?;
    }
    for &page in devices {
        root.map(DIRECT_MAP + page, Hpa(page), 1, W | D | NX | PCD)?;
    }
    Ok(root)
}

/// Maps RAM in the direct map, with the largest pages that fit.
fn map_direct(root: &Tree, range: Range<u64>, features: &Features) -> Result<(), NoMemory> {
    let (mut at, end) = (range.start & !0xfff, range.end.next_multiple_of(4096));
    while at < end {
        let fits = |size: u64| at % size == 0 && end - at >= size;
        let (level, size) = match () {
            () if features.pages_1g && fits(1 << 30) => (3, 1 << 30),
            () if fits(1 << 21) => (2, 1 << 21),
            () => (1, 4096),
        };
        root.map(DIRECT_MAP + at, Hpa(at), level, W | D | NX)?;
        at += size;
    }
    Ok(())
}

/// The half of the switcher window that all VMs share: a PML4 slot's worth of it.
///
/// # Errors
/// [`NoMemory`].
pub fn build_window(areas: &[AreaFrames], image: &ImageLayout) -> Result<Tree, NoMemory> {
    let window = Tree::new(3)?;
    let text = Text::linked();
    assert!(text.len <= area::TEXT_PAGES * 4096, "the switcher outgrew its pages");
    for (cpu, frames) in areas.iter().enumerate() {
        let base = layout::area_base(cpu);
        for offset in (0..text.len).step_by(4096) {
            window.map(base + area::TEXT + offset, Hpa(text.linked + offset - image.base), 1, 0)?;
        }
        for (&(page, writable), &own) in area::OWN_PAGES.iter().zip(frames) {
            let flags = if writable { W | D | NX } else { NX };
            window.map(base + page, own, 1, flags)?;
        }
    }
    Ok(window)
}

/// Has this CPU forget what it has cached of L1's own tables.
pub fn forget_own() {
    let (frame, flags) = Cr3::read();
    // SAFETY: the root that is loaded stays loaded.
    unsafe { Cr3::write(frame, flags) }
}

/// Switches to `root`.
///
/// # Safety
/// The root maps the code that runs, its stack, and everything L1 has references into, at the
/// addresses they have now.
pub unsafe fn activate(root: &Tree) {
    let frame = PhysFrame::containing_address(PhysAddr::new(root.table.0));
    // SAFETY: the caller's promise.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) }
}
