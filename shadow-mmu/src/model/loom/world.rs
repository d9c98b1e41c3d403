//! The traits of `env` for a few frames and vCPUs, and the guest's tables at the start.

use crate::{
    env::{GuestMemory, Table, TablePool, TlbOps},
    primitive::{
        AtomicU64, Entries, Mutex,
        Ordering::{AcqRel, Acquire, Relaxed, SeqCst},
        fence,
    },
};
use core::array;
use pv_abi::addr::{Gfn, Hpa};
use std::vec::Vec;

/// Another root, empty at first.
pub const NEW_ROOT: Gfn = Gfn(0);
/// The guest's tables: one of each level, and another of level 1 that nothing links at first.
pub const ROOT: Gfn = Gfn(1);
pub const LEVEL3: Gfn = Gfn(2);
pub const LEVEL2: Gfn = Gfn(3);
pub const LEVEL1: Gfn = Gfn(4);
pub const OTHER_LEVEL1: Gfn = Gfn(5);
/// Frames that are no table.
pub const DATA: [Gfn; 2] = [Gfn(6), Gfn(7)];
/// Guest frames, but for those of the block.
pub const FRAMES: u64 = 8;
/// First frame of a block of 2 MiB. Only it can be looked at as a table.
pub const BLOCK: Gfn = Gfn(512);
const HOST_BASE: u64 = 0x1000;
const POOL_BASE: u64 = 0x10_0000;
/// vCPUs.
pub const CPUS: usize = 2;

#[derive(Debug)]
pub struct World {
    frames: Vec<Table>,
    pool: Vec<Table>,
    /// Bit per guest frame: its host frame was taken away.
    gone: AtomicU64,
    /// Flushes asked for.
    requests: AtomicU64,
    /// Held by each vCPU while it runs guest code.
    running: [Mutex<()>; CPUS],
}

impl World {
    pub fn new(pool: u32) -> Self {
        let table = |_| Table(Entries::new());
        Self {
            frames: (0..=FRAMES).map(table).collect(),
            pool: (0..u64::from(pool)).map(table).collect(),
            gone: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            running: array::from_fn(|_| Mutex::new(())),
        }
    }

    /// The block's first frame comes last.
    fn place(gfn: Gfn) -> usize {
        if gfn == BLOCK { FRAMES as usize } else { gfn.0 as usize }
    }

    /// Entry `index` of the guest's table in `gfn`.
    pub fn entry(&self, gfn: Gfn, index: usize) -> &AtomicU64 {
        &self.frames[Self::place(gfn)].0[index]
    }

    /// A guest's store, and the way into L1, which waits until it is visible.
    pub fn store(&self, gfn: Gfn, index: usize, value: u64) {
        self.entry(gfn, index).store(value, Relaxed);
        fence(SeqCst);
    }

    /// Takes the host frame behind `gfn` away.
    pub fn take(&self, gfn: Gfn) {
        self.gone.fetch_or(1 << gfn.0, AcqRel);
    }

    /// Runs `code` as vCPU `cpu` in guest mode; it gets the number of flushes asked for so far.
    pub fn run<T>(&self, cpu: usize, code: impl FnOnce(u64) -> T) -> T {
        let running = self.running[cpu].lock();
        // What makes a vCPU enter is a CR3 load: nothing passes it.
        fence(SeqCst);
        let result = code(self.requests.load(Acquire));
        drop(running);
        fence(SeqCst);
        result
    }
}

impl GuestMemory for World {
    fn table_at(&self, gfn: Gfn) -> Option<&Table> {
        self.frames.get(Self::place(gfn))
    }

    fn host_frame(&self, gfn: Gfn) -> Option<Hpa> {
        let gone = gfn.0 >= FRAMES || self.gone.load(Acquire) >> gfn.0 & 1 == 1;
        let there = !gone || (BLOCK.0..2 * BLOCK.0).contains(&gfn.0);
        there.then_some(Hpa((gfn.0 + HOST_BASE) << 12))
    }

    fn host_block(&self, gfn: Gfn, level: u8) -> Option<Hpa> {
        self.host_frame(gfn).filter(|_| level == 2 && gfn == BLOCK)
    }

    fn guest_frame(&self, hpa: Hpa) -> Gfn {
        Gfn((hpa.0 >> 12) - HOST_BASE)
    }

    fn show_table(&self, _: Gfn, _: bool) {}
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
    /// As with interprocessor interrupts: a vCPU in guest mode is waited for, one that is not
    /// flushes before it enters.
    fn flush_all(&self) {
        self.requests.fetch_add(1, AcqRel);
        for running in &self.running {
            drop(running.lock());
        }
    }
}
