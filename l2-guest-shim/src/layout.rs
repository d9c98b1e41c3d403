//! Decides where the kernel's start-of-day pieces go in its memory.
//! May: nothing. Context: boot. Input: guest-controlled sizes.
//!
//! Behind the kernel, in the order that stock kernels expect: ramdisk (if it must be mapped),
//! physical-to-machine list, start_info, xenstore page, console page, page tables (L4, L3, L2,
//! L1s), boot stack; then slack up to a multiple of 4 MiB, half a megabyte at least. All of it,
//! from frame 0 on, is mapped from the kernel's virtual base in 4 KiB pages under one L2 table.
//!
//! Linux takes out what of this mapping lies behind it, in steps of 2 MiB: up to the list; from the
//! list's first byte on while within it; from the tables' first byte on, up to the multiple of 4 MiB
//! at or above their end. What remains would be writable and executable for ever, so the list begins
//! at a multiple of 2 MiB, and the slack ends at that multiple.

/// Size of a page.
const PAGE: u64 = 4096;
/// Reach of one leaf table.
const LEAF_SPAN: u64 = 2 << 20;
/// Reach of the one L2 table.
const MOST: u64 = 1 << 30;
const SLACK: u64 = 512 << 10;
const ROUND: u64 = 4 << 20;

/// Guest-physical addresses of the pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named after the pieces")]
pub struct Layout {
    pub ramdisk: u64,
    pub p2m: u64,
    pub start_info: u64,
    pub store: u64,
    pub console: u64,
    /// L4; L3, L2 and the L1 tables follow, a page each.
    pub tables: u64,
    pub l1_tables: u64,
    pub stack: u64,
    /// One past the last byte of a piece.
    pub used: u64,
    /// One past the last byte mapped.
    pub mapped: u64,
}

impl Layout {
    /// Lays out a guest of `pages` RAM frames whose kernel ends at `kernel_end`, with a ramdisk
    /// of `ramdisk` bytes to be mapped. `None` if the mapping would exceed 1 GiB.
    #[must_use]
    pub fn new(kernel_end: u64, pages: u64, ramdisk: u64) -> Option<Self> {
        let up = |at: u64| at.checked_next_multiple_of(PAGE);
        let ramdisk_at = up(kernel_end)?;
        let p2m = ramdisk_at.checked_add(ramdisk)?.checked_next_multiple_of(LEAF_SPAN)?;
        // Kernels write to the list's whole last page.
        let list = up(pages.checked_mul(8)?)?;
        [p2m, p2m.checked_add(LEAF_SPAN)?]
            .into_iter()
            .filter_map(|p2m| Self::behind(ramdisk_at, p2m, p2m.checked_add(list)?))
            .find(Self::is_taken_out)
    }

    /// With the list from `p2m` to `start_info`.
    fn behind(ramdisk_at: u64, p2m: u64, start_info: u64) -> Option<Self> {
        let (store, console, tables) =
            (start_info + PAGE, start_info + 2 * PAGE, start_info + 3 * PAGE);
        // The tables map themselves: try until they reach far enough.
        (1..=MOST / LEAF_SPAN).find_map(|l1_tables| {
            let stack = tables + (3 + l1_tables) * PAGE;
            let used = stack + PAGE;
            let mapped = (used + SLACK).next_multiple_of(ROUND);
            (l1_tables * LEAF_SPAN >= mapped).then_some(Self {
                ramdisk: ramdisk_at,
                p2m,
                start_info,
                store,
                console,
                tables,
                l1_tables,
                stack,
                used,
                mapped,
            })
        })
    }

    /// Whether Linux takes out all of the mapping behind itself.
    const fn is_taken_out(&self) -> bool {
        self.mapped == (self.tables + self.table_count() * PAGE).next_multiple_of(ROUND)
    }

    /// Page tables, all levels.
    #[must_use]
    pub const fn table_count(&self) -> u64 {
        3 + self.l1_tables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_reach_past_themselves() {
        // From 64 MiB to 4 GiB, and two others.
        let sizes = (1..=64).map(|size| (0x3e0_0000, size << 14));
        for (kernel_end, pages) in sizes.chain([(0x420_0000, 1 << 20), (0x100_1001, 1)]) {
            let layout = Layout::new(kernel_end, pages, 0).unwrap();
            assert!(layout.l1_tables * LEAF_SPAN >= layout.mapped);
            assert!((layout.l1_tables - 1) * LEAF_SPAN < layout.mapped, "no table too many");
            assert!(layout.mapped - layout.used >= SLACK);
            assert!(layout.p2m >= kernel_end && layout.start_info - layout.p2m >= pages * 8);
            assert_eq!(layout.stack, layout.tables + layout.table_count() * PAGE);
            assert!(taken_out(&layout), "{kernel_end:#x}, {pages} pages: {layout:x?}");
        }
    }

    /// Does what Linux does, and sees whether anything is left.
    fn taken_out(layout: &Layout) -> bool {
        let mut left = vec![true; (layout.mapped / LEAF_SPAN) as usize];
        // What is complete below the list; the kernel keeps its own.
        left[..(layout.p2m / LEAF_SPAN) as usize].fill(false);
        let tables_end = layout.tables + layout.table_count() * PAGE;
        let spans =
            [(layout.p2m, layout.start_info), (layout.tables, tables_end.next_multiple_of(ROUND))];
        for (mut at, end) in spans {
            while at <= end {
                if let Some(span) = left.get_mut((at / LEAF_SPAN) as usize) {
                    *span = false;
                }
                at += LEAF_SPAN;
            }
        }
        !left.contains(&true)
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        assert_eq!(Layout::new(MOST, 1, 0), None);
        assert_eq!(Layout::new(0x400_0000, 1 << 27, 0), None, "512 GiB have a list of 1 GiB");
        assert_eq!(Layout::new(u64::MAX, 1, 0), None);
        assert_eq!(Layout::new(0x400_0000, 1 << 15, u64::MAX), None);
    }

    #[test]
    fn a_mapped_ramdisk_comes_first() {
        let layout = Layout::new(0x3e0_0000, 1 << 15, 0x1234).unwrap();
        assert_eq!((layout.ramdisk, layout.p2m), (0x3e0_0000, 0x400_0000));
    }
}
