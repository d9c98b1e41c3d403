//! A VM's memory: which host frame stands behind a guest frame.
//! May: guest-memory. Context: any. Input: guest-controlled frame numbers.

use arrayvec::ArrayVec;
use core::ops::Range;
use pv_abi::addr::{Gfn, Hpa};

/// Guest frames with consecutive host frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First guest frame.
    pub gfn: u64,
    /// First host frame (a frame number).
    pub host: u64,
    /// How many.
    pub frames: u64,
}

/// Pieces at most: RAM below and above the hole under 4 GiB, and what fragmentation asks for.
const MOST: usize = 8;

/// The guest-physical memory of a VM. Immutable while the VM runs, so looking up takes no lock.
#[derive(Clone, Debug, Default)]
pub struct GuestRam(ArrayVec<Extent, MOST>);

impl GuestRam {
    /// No memory.
    #[must_use]
    pub const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// Appends `extent`; false if there are too many pieces.
    #[must_use]
    pub fn add(&mut self, extent: Extent) -> bool {
        self.0.try_push(extent).is_ok()
    }

    /// The host frame behind `gfn`.
    #[inline]
    #[must_use]
    pub fn host_frame(&self, gfn: Gfn) -> Option<Hpa> {
        self.0.iter().find_map(|extent| {
            let offset = gfn.0.wrapping_sub(extent.gfn);
            (offset < extent.frames).then(|| Hpa((extent.host + offset) << 12))
        })
    }

    /// The guest frame in front of `hpa`, which must be this VM's.
    #[inline]
    #[must_use]
    pub fn guest_frame(&self, hpa: Hpa) -> Gfn {
        let frame = hpa.0 >> 12;
        let found = self.0.iter().find_map(|extent| {
            let offset = frame.wrapping_sub(extent.host);
            (offset < extent.frames).then(|| Gfn(extent.gfn + offset))
        });
        found.expect("shadow entries point into the VM's own memory")
    }

    /// The pieces, in the order they were added.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.0
    }

    /// Splits `len` bytes at `gpa` into runs that are contiguous in host memory and do not cross
    /// a page; `None` where there is no RAM.
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
        let mut ram = GuestRam::new();
        assert!(ram.add(Extent { gfn: 0, host: 0x1000, frames: 0x200 }));
        assert!(ram.add(Extent { gfn: 0x400, host: 0x100, frames: 1 }));
        ram
    }

    #[test]
    fn frames_translate_both_ways_and_holes_do_not() {
        let ram = ram();
        for gfn in [0, 0x1ff, 0x400].map(Gfn) {
            let hpa = ram.host_frame(gfn).unwrap();
            assert_eq!(ram.guest_frame(hpa), gfn);
        }
        for gfn in [0x200, 0x3ff, 0x401, u64::MAX >> 12].map(Gfn) {
            assert_eq!(ram.host_frame(gfn), None);
        }
    }

    #[test]
    fn runs_stop_at_pages_and_holes() {
        let ram = ram();
        let runs: std::vec::Vec<_> = ram.runs(0x1f_fff0, 0x20).collect();
        assert_eq!(runs, [Some(0x11f_fff0..0x120_0000), None]);
        assert_eq!(ram.runs(u64::MAX - 4, 100).count(), 1, "no wrap-around");
    }
}
