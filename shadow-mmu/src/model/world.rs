//! The traits of `env`, in plain memory.

use crate::{
    env::{ENTRIES, GuestMemory, Table, TablePool, TlbOps},
    primitive::{AtomicU64, Ordering::Relaxed},
};
use core::cell::{Cell, OnceCell, RefCell};
use pv_abi::addr::{Gfn, Gpa, Hpa};
use std::{boxed::Box, collections::HashSet, vec::Vec};

/// Guest frames that the test is mostly about.
pub const FRAMES: u64 = 64;
/// First frame of a block of 2 MiB, and the end of memory. Between it and [`FRAMES`] is nothing.
pub const BLOCK: u64 = 512;
pub const END: u64 = 1024;
const HOST_BASE: u64 = 0x1000;
const POOL_BASE: u64 = 0x10_0000;

fn zero_table() -> Table {
    Table([const { AtomicU64::new(0) }; ENTRIES])
}

#[derive(Debug)]
pub struct World {
    /// Made when they are first looked at.
    frames: Vec<OnceCell<Box<Table>>>,
    pool: Vec<Table>,
    /// Flushes the MMU has asked for since the machine last looked.
    pub flush_requested: Cell<bool>,
    /// The table bitmap.
    pub shown: RefCell<HashSet<u64>>,
}

impl World {
    pub fn new(pool: u32) -> Self {
        Self {
            frames: (0..END).map(|_| OnceCell::new()).collect(),
            pool: (0..pool).map(|_| zero_table()).collect(),
            flush_requested: Cell::new(false),
            shown: RefCell::default(),
        }
    }

    fn entry(&self, at: Gpa) -> Option<&AtomicU64> {
        Some(&self.table_at(at.gfn())?.0[(at.page_offset() / 8) as usize])
    }

    pub fn store(&self, at: Gpa, value: u64) {
        self.entry(at).expect("the test stores to RAM").store(value, Relaxed);
    }
}

impl GuestMemory for World {
    fn table_at(&self, gfn: Gfn) -> Option<&Table> {
        self.host_frame(gfn)?;
        Some(self.frames[gfn.0 as usize].get_or_init(|| Box::new(zero_table())))
    }

    fn host_frame(&self, gfn: Gfn) -> Option<Hpa> {
        let ram = gfn.0 < FRAMES || (BLOCK..END).contains(&gfn.0);
        ram.then_some(Hpa((gfn.0 + HOST_BASE) << 12))
    }

    fn host_block(&self, gfn: Gfn, level: u8) -> Option<Hpa> {
        self.host_frame(gfn).filter(|_| level == 2 && gfn.0 == BLOCK)
    }

    fn guest_frame(&self, hpa: Hpa) -> Gfn {
        Gfn((hpa.0 >> 12) - HOST_BASE)
    }

    fn show_table(&self, gfn: Gfn, shadowed: bool) {
        let mut shown = self.shown.borrow_mut();
        let changed = if shadowed { shown.insert(gfn.0) } else { shown.remove(&gfn.0) };
        assert!(changed, "the bitmap is told of changes only");
    }
}

impl TablePool for World {
    fn capacity(&self) -> u32 {
        self.pool.len() as u32
    }

    fn table(&self, id: u32) -> &Table {
        &self.pool[id as usize]
    }

    fn hpa(&self, id: u32) -> Hpa {
        Hpa((u64::from(id) + POOL_BASE) << 12)
    }

    fn id(&self, hpa: Hpa) -> u32 {
        ((hpa.0 >> 12) - POOL_BASE) as u32
    }
}

impl TlbOps for World {
    fn flush_all(&self) {
        self.flush_requested.set(true);
    }
}
