//! What the MMU's own records take, from the sizes of its structures.

use crate::host::Host;
use shadow_mmu::{Mmu, page::ShadowPage};

/// Records of a VM.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes that a VM reserves per shadow page.
    pub per_page: u64,
    /// Of those, the record of the page itself.
    pub page_record: u64,
    /// Bytes that a VM reserves per guest frame.
    pub per_frame: f64,
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
        }
    }

    /// Bytes per mapped leaf where each frame is mapped `mappings` times.
    #[must_use]
    pub fn per_leaf(&self, mappings: u32) -> f64 {
        self.per_frame / f64::from(mappings)
    }
}
