//! A VM's memory: which host frame stands behind a guest frame.
//! May: guest-memory. Context: any. Input: guest-controlled frame numbers.
//!
//! Memory comes in blocks of 2 MiB, aligned on both sides, so one table lookup translates either
//! way. It is immutable while the VM runs: no lock, no loop, on the way of every guest walk.

use alloc::{boxed::Box, vec, vec::Vec};
use core::ops::Range;
use pv_abi::addr::{Gfn, Hpa};

/// Frames of a block.
pub const BLOCK: u64 = 512;

/// Guest frames with consecutive host frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First guest frame, a multiple of [`BLOCK`].
    pub gfn: u64,
    /// First host frame (a frame number), a multiple of [`BLOCK`].
    pub host: u64,
    /// How many, a multiple of [`BLOCK`].
    pub frames: u64,
}

/// No block: no difference of block addresses has this value.
const NONE: u64 = 1;

/// The guest-physical memory of a VM.
#[derive(Clone, Debug, Default)]
pub struct GuestRam {
    extents: Vec<Extent>,
    /// For each guest block: what to add to a guest-physical address to get the host's.
    to_host: Box<[u64]>,
    /// For each host block, from `first_host` on: what to add for the way back.
    to_guest: Box<[u64]>,
    first_host: u64,
}

/// Bytes of a block, as a shift.
const BLOCK_SHIFT: u32 = 21;

impl GuestRam {
    /// The memory made of `extents`, which do not overlap.
    ///
    /// # Panics
    /// If an extent is not made of whole blocks: L1's own mistake.
    #[must_use]
    pub fn new(extents: Vec<Extent>) -> Self {
        let whole =
            |extent: &Extent| (extent.gfn | extent.host | extent.frames).is_multiple_of(BLOCK);
        assert!(extents.iter().all(whole), "memory comes in blocks");
        let blocks = |end: u64| (end / BLOCK) as usize;
        let guest_end = extents.iter().map(|e| e.gfn + e.frames).max().unwrap_or(0);
        let host_start = extents.iter().map(|e| e.host).min().unwrap_or(0);
        let host_end = extents.iter().map(|e| e.host + e.frames).max().unwrap_or(0);
        let mut to_host = vec![NONE; blocks(guest_end)];
        let mut to_guest = vec![NONE; blocks(host_end - host_start)];
        for extent in &extents {
            let difference = extent.host.wrapping_sub(extent.gfn) << 12;
            for block in 0..extent.frames / BLOCK {
                let (guest, host) = (extent.gfn / BLOCK + block, extent.host / BLOCK + block);
                to_host[guest as usize] = difference;
                to_guest[(host - host_start / BLOCK) as usize] = difference.wrapping_neg();
            }
        }
        Self {
            extents,
            to_host: to_host.into(),
            to_guest: to_guest.into(),
            first_host: host_start / BLOCK,
        }
    }

    /// The host frame behind `gfn`.
    #[inline(always)]
    #[must_use]
    pub fn host_frame(&self, gfn: Gfn) -> Option<Hpa> {
        let gpa = gfn.gpa().0;
        let difference = *self.to_host.get((gfn.0 >> (BLOCK_SHIFT - 12)) as usize)?;
        (difference != NONE).then(|| Hpa(gpa.wrapping_add(difference)))
    }

    /// The host address of the large page at `level` that starts at guest frame `gfn`, if the host
    /// frames are consecutive and aligned alike.
    #[must_use]
    pub fn host_block(&self, gfn: Gfn, level: u8) -> Option<Hpa> {
        let frames = 1u64 << (9 * (u32::from(level) - 1));
        let blocks = (gfn.0 / BLOCK) as usize..((gfn.0 + frames) / BLOCK) as usize;
        let differences = self.to_host.get(blocks)?;
        let alike = differences.iter().all(|difference| *difference == differences[0]);
        self.host_frame(gfn).filter(|hpa| alike && (hpa.0 >> 12).is_multiple_of(frames))
    }

    /// The guest frame in front of `hpa`, which must be this VM's.
    ///
    /// # Panics
    /// If it lies outside the host blocks of the VM.
    #[inline(always)]
    #[must_use]
    pub fn guest_frame(&self, hpa: Hpa) -> Gfn {
        let block = (hpa.0 >> BLOCK_SHIFT) - self.first_host;
        Gfn(hpa.0.wrapping_add(self.to_guest[block as usize]) >> 12)
    }

    /// Guest frames: one past the last.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.to_host.len() as u64 * BLOCK
    }

    /// The first frame of each block.
    pub fn blocks(&self) -> impl Iterator<Item = Gfn> {
        let blocks =
            |extent: &Extent| (extent.gfn..extent.gfn + extent.frames).step_by(BLOCK as usize);
        self.extents.iter().flat_map(blocks).map(Gfn)
    }

    /// The pieces, in the order they were given.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The first frame that is beyond all memory.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.extents.iter().map(|extent| extent.gfn + extent.frames).max().unwrap_or(0)
    }

    /// Splits `len` bytes at `gpa` into runs that do not cross a page, as ranges of host
    /// addresses; `None` where there is no RAM.
    pub fn runs(&self, gpa: u64, len: u64) -> impl Iterator<Item = Option<Range<u64>>> {
        let mut at = gpa;
        let end = gpa.saturating_add(len);
        core::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let stop = end.min((at & !0xfff).saturating_add(0x1000));
            let run = self.host_frame(Gfn(at >> 12)).map(|hpa| {
                let start = hpa.0 + (at & 0xfff);
                start..start + (stop - at)
            });
            at = stop;
            Some(run)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> GuestRam {
        GuestRam::new(vec![
            Extent { gfn: 0, host: 0x1000, frames: 0x200 },
            Extent { gfn: 0x600, host: 0x400, frames: 0x400 },
        ])
    }

    #[test]
    fn frames_translate_both_ways_and_holes_do_not() {
        let ram = ram();
        for gfn in [0, 0x1ff, 0x600, 0x9ff].map(Gfn) {
            let hpa = ram.host_frame(gfn).unwrap();
            assert_eq!(ram.guest_frame(hpa), gfn);
        }
        assert_eq!(ram.host_frame(Gfn(0x801)), Some(Hpa(0x60_1000)));
        for gfn in [0x200, 0x5ff, 0xa00, u64::MAX >> 12, u64::MAX].map(Gfn) {
            assert_eq!(ram.host_frame(gfn), None);
        }
    }

    #[test]
    fn blocks_come_one_by_one() {
        let ram = ram();
        let blocks: Vec<_> = ram.blocks().map(|block| block.0).collect();
        assert_eq!((blocks, ram.frames()), (vec![0, 0x600, 0x800], 0xa00));
    }

    #[test]
    fn large_pages_need_consecutive_frames() {
        let ram = GuestRam::new(vec![
            Extent { gfn: 0, host: 0x8_0000, frames: 0x4_0000 },
            Extent { gfn: 0x4_0000, host: 0xc_0200, frames: 0x4_0000 },
            Extent { gfn: 0x8_0000, host: 0x14_0000, frames: 0x600 },
        ]);
        let block = |gfn, level| ram.host_block(Gfn(gfn), level).map(|hpa| hpa.0 >> 12);
        assert_eq!(block(0x200, 2), Some(0x8_0200));
        assert_eq!(block(0, 3), Some(0x8_0000));
        assert_eq!(block(0x4_0000, 3), None, "not aligned alike");
        assert_eq!(block(0x4_0000, 2), Some(0xc_0200));
        assert_eq!((block(0x8_0400, 2), block(0x8_0600, 2)), (Some(0x14_0400), None));
        assert_eq!(block(0x8_0000, 3), None, "beyond the end");
    }

    #[test]
    fn runs_stop_at_pages_and_holes() {
        let ram = ram();
        let runs: Vec<_> = ram.runs(0x1f_fff0, 0x20).collect();
        assert_eq!(runs, [Some(0x11f_fff0..0x120_0000), None]);
        assert_eq!(ram.runs(u64::MAX - 4, 100).count(), 1, "no wrap-around");
    }
}
