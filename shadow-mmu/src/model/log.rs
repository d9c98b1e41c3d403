//! What a dirty log must tell.

use super::{
    World,
    world::{BLOCK, FRAMES},
};
use crate::{dirty::FRAMES_PER_WORD, env::GuestMemory, primitive::Ordering::Relaxed};
use pv_abi::addr::Gfn;
use std::{collections::BTreeSet, vec::Vec};

/// Watches the guest's memory itself.
#[derive(Debug)]
pub struct LogCheck {
    /// Frames that the guest has written since the last look, by access.
    written: BTreeSet<u64>,
    /// The low frames as they were then: the MMU sets bits in those that are page tables.
    copies: Vec<Vec<u64>>,
}

fn copy(world: &World, gfn: u64) -> Vec<u64> {
    let table = world.table_at(Gfn(gfn)).unwrap();
    table.0.iter().map(|entry| entry.load(Relaxed)).collect()
}

impl LogCheck {
    pub fn new(world: &World) -> Self {
        let copies = (0..FRAMES).map(|gfn| copy(world, gfn)).collect();
        Self { written: BTreeSet::new(), copies }
    }

    /// The guest wrote to `gfn`.
    pub fn wrote(&mut self, gfn: Gfn) {
        self.written.insert(gfn.0);
    }

    /// Compares what the log told with what happened, and starts afresh.
    pub fn check(&mut self, world: &World, words: &[u64]) {
        let told =
            |gfn: u64| words[(gfn / FRAMES_PER_WORD) as usize] >> (gfn % FRAMES_PER_WORD) & 1 == 1;
        for &gfn in &self.written {
            assert!(told(gfn), "a write to {gfn:#x} was not logged");
        }
        for gfn in 0..FRAMES {
            let now = copy(world, gfn);
            let then = std::mem::replace(&mut self.copies[gfn as usize], now);
            assert!(then == self.copies[gfn as usize] || told(gfn), "{gfn:#x} has changed");
        }
        // Frames of data, which no program uses as tables: nothing but accesses writes there.
        let end = words.len() as u64 * FRAMES_PER_WORD;
        for gfn in (33..end).filter(|&gfn| gfn != BLOCK + 3) {
            assert!(!told(gfn) || self.written.contains(&gfn), "nobody wrote to {gfn:#x}");
        }
        self.written.clear();
    }
}
