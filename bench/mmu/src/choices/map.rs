//! Finding the shadow page of a guest frame.
//!
//! The mix is that of processes that come and go: each table is made once, looked for by links,
//! flushes and notes 16 times, and removed.

use super::{Alternative, MAP};
use crate::threads::Phased;
use crossbeam_utils::CachePadded;
use dashmap::DashMap;
use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;
use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{
        AtomicU32,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
};

/// Tables of each thread, and how often each is looked for.
const TABLES: u64 = 256;
const LOOKS: u64 = 16;
/// Frames of the VM.
const FRAMES: u64 = 1 << 18;

/// A map from frames to pages.
trait Map: Default + Sync {
    fn insert(&self, gfn: u64, page: u32);
    fn get(&self, gfn: u64) -> Option<u32>;
    fn remove(&self, gfn: u64);
}

type Table<S> = spin::Mutex<HashMap<u64, u32, S>>;

/// `N` maps with a lock each, side by side or a cache line each (`P`).
struct Sharded<P, const N: usize>([P; N]);

impl<P: Default, const N: usize> Default for Sharded<P, N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| P::default()))
    }
}

/// A shard, padded or not.
trait Shard: Default + Sync {
    type Hasher: BuildHasher;
    fn table(&self) -> &Table<Self::Hasher>;
}

impl<S: BuildHasher + Default + Send> Shard for Table<S> {
    type Hasher = S;
    fn table(&self) -> &Table<S> {
        self
    }
}

impl<S: BuildHasher + Default + Send> Shard for CachePadded<Table<S>> {
    type Hasher = S;
    fn table(&self) -> &Table<S> {
        self
    }
}

impl<P: Shard, const N: usize> Map for Sharded<P, N> {
    fn insert(&self, gfn: u64, page: u32) {
        self.0[gfn as usize % N].table().lock().insert(gfn, page);
    }

    fn get(&self, gfn: u64) -> Option<u32> {
        self.0[gfn as usize % N].table().lock().get(&gfn).copied()
    }

    fn remove(&self, gfn: u64) {
        self.0[gfn as usize % N].table().lock().remove(&gfn);
    }
}

/// One map under one reader-writer lock.
#[derive(Default)]
struct ReaderWriter(spin::RwLock<HashMap<u64, u32, FxBuildHasher>>);

impl Map for ReaderWriter {
    fn insert(&self, gfn: u64, page: u32) {
        self.0.write().insert(gfn, page);
    }

    fn get(&self, gfn: u64) -> Option<u32> {
        self.0.read().get(&gfn).copied()
    }

    fn remove(&self, gfn: u64) {
        self.0.write().remove(&gfn);
    }
}

impl Map for DashMap<u64, u32, FxBuildHasher> {
    fn insert(&self, gfn: u64, page: u32) {
        self.insert(gfn, page);
    }

    fn get(&self, gfn: u64) -> Option<u32> {
        self.get(&gfn).map(|page| *page)
    }

    fn remove(&self, gfn: u64) {
        self.remove(&gfn);
    }
}

/// The MMU's: a word for each guest frame, the head of the frame's chain of pages. Its top bit is a lock
/// for those who change it.
struct Array(Box<[AtomicU32]>);

const LOCK: u32 = 1 << 31;
const NONE: u32 = LOCK - 1;

impl Default for Array {
    fn default() -> Self {
        Self((0..FRAMES).map(|_| AtomicU32::new(NONE)).collect())
    }
}

impl Array {
    /// Leaves in a word, under its lock, what `change` makes of it.
    fn locked(&self, gfn: u64, change: impl FnOnce(u32) -> u32) {
        let word = &self.0[gfn as usize];
        loop {
            let now = word.load(Relaxed) & !LOCK;
            if word.compare_exchange_weak(now, now | LOCK, Acquire, Relaxed).is_ok() {
                word.swap(change(now), AcqRel);
                return;
            }
            std::hint::spin_loop();
        }
    }
}

impl Map for Array {
    fn insert(&self, gfn: u64, page: u32) {
        self.locked(gfn, |_| page);
    }

    fn get(&self, gfn: u64) -> Option<u32> {
        let page = self.0[gfn as usize].fetch_or(0, AcqRel) & !LOCK;
        (page != NONE).then_some(page)
    }

    fn remove(&self, gfn: u64) {
        self.locked(gfn, |_| NONE);
    }
}

/// The mix on map `M`.
struct Mix<M>(M);

impl<M: Map> Phased for Mix<M> {
    type Lane = Vec<u64>;
    const PHASES: usize = 1;

    fn lane(&self, index: usize, threads: usize) -> Vec<u64> {
        // Frames of tables lie scattered among all others. The top bits of a product have no
        // pattern that shards could follow.
        let frame = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - FRAMES.ilog2());
        (0..TABLES).map(|n| frame(n * threads as u64 + index as u64)).collect()
    }

    fn phase(&self, frames: &mut Vec<u64>, _: usize) -> u64 {
        for (page, &gfn) in frames.iter().enumerate() {
            self.0.insert(gfn, page as u32);
        }
        for _ in 0..LOOKS {
            for (page, &gfn) in frames.iter().enumerate() {
                assert!(self.0.get(gfn) == Some(page as u32), "the map lost a page");
            }
        }
        for &gfn in &*frames {
            self.0.remove(gfn);
        }
        TABLES * (LOOKS + 2)
    }
}

type Fx = Table<FxBuildHasher>;
type Padded = CachePadded<Fx>;

pub(super) fn alternatives() -> Vec<Alternative> {
    let way = |name, make| Alternative { part: MAP, name, make };
    vec![
        way("an array with a word for every guest frame (present)", |_| {
            Box::new(Mix(Array::default()))
        }),
        way("16 shards, Fx hash, spin locks", |_| Box::new(Mix(Sharded::<Fx, 16>::default()))),
        way("the same, each shard in a cache line", |_| {
            Box::new(Mix(Sharded::<Padded, 16>::default()))
        }),
        way("64 shards, each in a cache line", |_| Box::new(Mix(Sharded::<Padded, 64>::default()))),
        way("16 shards, SipHash", |_| Box::new(Mix(Sharded::<Table<RandomState>, 16>::default()))),
        way("one map, spin lock", |_| Box::new(Mix(Sharded::<Fx, 1>::default()))),
        way("one map, reader-writer lock", |_| Box::new(Mix(ReaderWriter::default()))),
        way("dashmap, Fx hash", |_| Box::new(Mix(DashMap::<u64, u32, FxBuildHasher>::default()))),
    ]
}
