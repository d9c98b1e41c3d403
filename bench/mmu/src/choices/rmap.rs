//! Noting which entries map a frame.
//!
//! Each thread has frames of its own. A frame is mapped by the kernel and, in turn, by a process;
//! or by 32 processes, which come and go in no order, like a page of a shared library.

use super::{Alternative, RMAP, SHARED_RMAP};
use crate::{
    refs::{Chunks, RefList},
    threads::Phased,
};
use shadow_mmu::page::EntryRef;
use smallvec::SmallVec;

/// Frames of each thread.
const FRAMES: usize = 512;
/// Mappings of a shared frame.
const MAPPINGS: usize = 32;

/// All reverse maps of a VM.
trait Rmaps: Sync {
    fn new(frames: usize) -> Self;
    fn add(&self, frame: usize, entry: EntryRef);
    fn remove(&self, frame: usize, entry: EntryRef);
}

/// The MMU's own: a word a frame, chunks for more.
struct Own {
    lists: Box<[RefList]>,
    chunks: Chunks,
}

impl Rmaps for Own {
    fn new(frames: usize) -> Self {
        let chunks = Chunks::new((frames * (MAPPINGS / 3 + 1)) as u32);
        Self { lists: (0..frames).map(|_| RefList::new()).collect(), chunks }
    }

    fn add(&self, frame: usize, entry: EntryRef) {
        let added = self.lists[frame].lock(&self.chunks).add(entry);
        assert!(added.is_ok(), "there are chunks for all");
    }

    fn remove(&self, frame: usize, entry: EntryRef) {
        let removed = self.lists[frame].lock(&self.chunks).remove(entry);
        assert!(removed, "the entry was added");
    }
}

/// A growing list of references.
trait List: Default + Send {
    fn push(&mut self, entry: EntryRef);
    fn remove(&mut self, entry: EntryRef);
}

impl List for Vec<EntryRef> {
    fn push(&mut self, entry: EntryRef) {
        self.push(entry);
    }

    fn remove(&mut self, entry: EntryRef) {
        if let Some(place) = self.iter().rposition(|&other| other == entry) {
            self.swap_remove(place);
        }
        if self.is_empty() {
            // Memory is for frames that are mapped.
            *self = Self::new();
        }
    }
}

impl List for SmallVec<[EntryRef; 2]> {
    fn push(&mut self, entry: EntryRef) {
        self.push(entry);
    }

    fn remove(&mut self, entry: EntryRef) {
        if let Some(place) = self.iter().rposition(|&other| other == entry) {
            self.swap_remove(place);
        }
        if self.spilled() && self.len() <= 2 {
            self.shrink_to_fit();
        }
    }
}

/// A list of the standard kind for each frame, under a lock.
struct Lists<L>(Box<[spin::Mutex<L>]>);

impl<L: List> Rmaps for Lists<L> {
    fn new(frames: usize) -> Self {
        Self((0..frames).map(|_| spin::Mutex::default()).collect())
    }

    fn add(&self, frame: usize, entry: EntryRef) {
        self.0[frame].lock().push(entry);
    }

    fn remove(&self, frame: usize, entry: EntryRef) {
        self.0[frame].lock().remove(entry);
    }
}

/// The mix, with `N` mappings of each frame.
struct Mix<R, const N: usize>(R);

fn entry(frame: usize, mapping: usize) -> EntryRef {
    EntryRef::new(mapping as u32, frame % 512)
}

impl<R: Rmaps, const N: usize> Mix<R, N> {
    fn boxed(threads: usize) -> Box<dyn crate::threads::Rounds>
    where
        R: 'static,
    {
        Box::new(Self(R::new(threads * FRAMES)))
    }
}

impl<R: Rmaps, const N: usize> Phased for Mix<R, N> {
    type Lane = usize;
    const PHASES: usize = 1;

    fn lane(&self, index: usize, _: usize) -> usize {
        index * FRAMES
    }

    fn phase(&self, first: &mut usize, _: usize) -> u64 {
        let frames = *first..*first + FRAMES;
        for mapping in 0..N {
            for frame in frames.clone() {
                self.0.add(frame, entry(frame, mapping));
            }
        }
        for step in 0..N {
            // An odd factor: each mapping once, in no order.
            let mapping = (step * 13 + 5) % N;
            for frame in frames.clone() {
                self.0.remove(frame, entry(frame, mapping));
            }
        }
        (FRAMES * N * 2) as u64
    }
}

type Small = Lists<SmallVec<[EntryRef; 2]>>;

pub(super) fn alternatives() -> Vec<Alternative> {
    let way = |part, name, make| Alternative { part, name, make };
    vec![
        way(RMAP, "a word for two, chunks of 3 (present)", Mix::<Own, 2>::boxed),
        way(RMAP, "Vec and spin lock per frame", Mix::<Lists<Vec<EntryRef>>, 2>::boxed),
        way(RMAP, "SmallVec of 2 and spin lock per frame", Mix::<Small, 2>::boxed),
        way(SHARED_RMAP, "a word for two, chunks of 3 (present)", Mix::<Own, MAPPINGS>::boxed),
        way(
            SHARED_RMAP,
            "Vec and spin lock per frame",
            Mix::<Lists<Vec<EntryRef>>, MAPPINGS>::boxed,
        ),
        way(SHARED_RMAP, "SmallVec of 2 and spin lock per frame", Mix::<Small, MAPPINGS>::boxed),
    ]
}
