//! What the MMU's own records take, from the sizes of its structures.

use crate::host::Host;
use shadow_mmu::{Mmu, page::ShadowPage};

/// Bytes of a record in the map from frames to pages: key, value, and a byte of hash, in a table
/// that is filled between 7/16 and 7/8.
const MAP_ENTRY: f64 = 17.0;

/// Records of a VM.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes that a VM reserves per shadow page.
    pub per_page: u64,
    /// Of those, the record of the page itself.
    pub page_record: u64,
    /// Bytes that a VM reserves per guest frame.
    pub per_frame: f64,
    /// Bytes per shadow page in the map, at least and at most; not reserved.
    pub map: [f64; 2],
}

impl Memory {
    /// As built.
    #[must_use]
    pub fn of_roost() -> Self {
        const FRAMES: u64 = 1 << 20;
        const PAGES: u32 = 1 << 14;
        let overhead = Mmu::<Host>::overhead;
        let base = overhead(FRAMES, PAGES);
        Self {
            per_page: (overhead(FRAMES, 2 * PAGES) - base) / u64::from(PAGES),
            page_record: size_of::<ShadowPage>() as u64,
            per_frame: (overhead(2 * FRAMES, PAGES) - base) as f64 / FRAMES as f64,
            map: [MAP_ENTRY * 8.0 / 7.0, MAP_ENTRY * 16.0 / 7.0],
        }
    }

    /// Bytes per mapped leaf where each frame is mapped `mappings` times.
    #[must_use]
    pub fn per_leaf(&self, mappings: u32) -> f64 {
        self.per_frame / f64::from(mappings)
    }
}
