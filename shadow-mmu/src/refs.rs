//! Lists of references to shadow entries: who maps a guest frame (rmap), who links a shadow page.
//! May: nothing. Context: run-loop.
//!
//! A list is one word: a lock bit and up to two references, or the number of the chunk that starts
//! a chain. Two references, one from the kernel's map of all memory and one from user space, are
//! the common case and need no memory.

use crate::{
    failing::Failing,
    mutant::{Mutant, planted},
    page::EntryRef,
    primitive::{
        AtomicU32, AtomicU64, Mutex,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
        fence, spin_loop,
    },
};
use alloc::{boxed::Box, vec::Vec};
use core::array;

const LOCK: u64 = 1 << 63;
const CHAIN: u64 = 1 << 62;
/// A reference takes so many bits. It is stored plus one, so that zero is none.
const BITS: u32 = 31;
/// The first reference, or in a chain the first chunk; above it the second reference, or the
/// number of references in the first chunk.
const FIRST: u64 = (1 << BITS) - 1;
/// References in a chunk: as many as an entry must have to need one.
const PER_CHUNK: usize = 3;
const NO_CHUNK: u32 = FIRST as u32;

/// A lockable list of references.
#[derive(Debug)]
pub(crate) struct RefList(AtomicU64);

/// Some references. The newest chunk comes first, and the newest reference last in it: short-lived
/// mappings are found at once. Only the first chunk is partly filled.
#[derive(Debug)]
struct Chunk {
    next: AtomicU32,
    refs: [AtomicU32; PER_CHUNK],
}

/// Bytes that a chunk takes.
pub(crate) const CHUNK_SIZE: usize = size_of::<Chunk>();

/// All chunks of a VM.
#[derive(Debug)]
pub(crate) struct Chunks {
    chunks: Box<[Chunk]>,
    free: Mutex<u32>,
    /// Makes allocations fail, in tests.
    pub(crate) failing: Failing,
}

impl Chunks {
    pub(crate) fn new(capacity: u32) -> Self {
        let chunks: Vec<_> = (0..capacity)
            .map(|id| Chunk {
                next: AtomicU32::new(if id + 1 == capacity { NO_CHUNK } else { id + 1 }),
                refs: array::from_fn(|_| AtomicU32::new(0)),
            })
            .collect();
        let head = if capacity == 0 { NO_CHUNK } else { 0 };
        let free = Mutex::new(head);
        Self { chunks: chunks.into_boxed_slice(), free, failing: Failing::default() }
    }

    fn alloc(&self) -> Option<u32> {
        let mut free = self.free.lock();
        let id = *free;
        if id == NO_CHUNK || self.failing.strikes() {
            return None;
        }
        *free = self.chunks[id as usize].next.load(Relaxed);
        Some(id)
    }

    fn free(&self, id: u32) {
        let mut free = self.free.lock();
        self.chunks[id as usize].next.store(*free, Relaxed);
        *free = id;
    }
}

/// The list is full because memory for references ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoMemory;

/// What a list held at an instant. It may hold something else and look the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(u64);

/// A locked list; unlocks when dropped.
pub(crate) struct Locked<'a> {
    list: &'a RefList,
    chunks: &'a Chunks,
    word: u64,
}

impl RefList {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[inline]
    pub(crate) fn lock<'a>(&'a self, chunks: &'a Chunks) -> Locked<'a> {
        loop {
            let word = self.0.load(Relaxed) & !LOCK;
            if self.0.compare_exchange_weak(word, word | LOCK, Acquire, Relaxed).is_ok() {
                return Locked { list: self, chunks, word };
            }
            spin_loop();
        }
    }

    /// What the list holds, to compare with what it holds later.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot(self.0.load(Acquire) & !LOCK)
    }

    /// True if nothing is in the list, and whoever adds something from now on sees what the caller
    /// has stored before.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        fence(SeqCst);
        self.0.load(Acquire) == 0
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.list.0.store(self.word, Release);
    }
}

const fn stored(entry: EntryRef) -> u64 {
    entry.0 as u64 + 1
}

const fn loaded(stored: u64) -> EntryRef {
    EntryRef(stored as u32 - 1)
}

impl<'a> Locked<'a> {
    pub(crate) const fn snapshot(&self) -> Snapshot {
        Snapshot(self.word)
    }

    const fn first(&self) -> u64 {
        self.word & FIRST
    }

    const fn second(&self) -> u64 {
        self.word >> BITS & FIRST
    }

    const fn is_chain(&self) -> bool {
        self.word & CHAIN != 0
    }

    /// The first chunk of the chain and the number of references in it.
    fn head(&self) -> Option<(u32, usize)> {
        self.is_chain().then_some((self.first() as u32, self.second() as usize))
    }

    fn set_head(&mut self, chunk: u32, len: usize) {
        self.word = u64::from(chunk) | (len as u64) << BITS | CHAIN;
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.word == 0
    }

    /// Adds `entry`, which must not be in the list.
    #[inline]
    pub(crate) fn add(&mut self, entry: EntryRef) -> Result<(), NoMemory> {
        if self.word == 0 {
            self.word = stored(entry);
            return Ok(());
        }
        // Neither a chain nor a second reference.
        if self.word <= FIRST {
            self.word |= stored(entry) << BITS;
            return Ok(());
        }
        let added = self.add_to_chain(entry);
        if planted(Mutant::ReferenceDropped) { Ok(()) } else { added }
    }

    fn add_to_chain(&mut self, entry: EntryRef) -> Result<(), NoMemory> {
        let (chunk, len) = match self.head() {
            Some((head, len)) if len < PER_CHUNK => (head, len),
            full => {
                let id = self.chunks.alloc().ok_or(NoMemory)?;
                let (chunk, next) = (self.chunk(id), full.map_or(NO_CHUNK, |(head, _)| head));
                chunk.next.store(next, Relaxed);
                if full.is_none() {
                    chunk.refs[0].store(loaded(self.first()).0, Relaxed);
                    chunk.refs[1].store(loaded(self.second()).0, Relaxed);
                }
                (id, if full.is_none() { 2 } else { 0 })
            }
        };
        self.chunk(chunk).refs[len].store(entry.0, Relaxed);
        self.set_head(chunk, len + 1);
        Ok(())
    }

    /// Removes `entry`; false if it was not there.
    #[inline]
    pub(crate) fn remove(&mut self, entry: EntryRef) -> bool {
        if self.is_chain() {
            return self.remove_from_chain(entry);
        }
        if self.first() == stored(entry) {
            self.word = self.second();
            return true;
        }
        let there = self.second() == stored(entry);
        if there {
            self.word = self.first();
        }
        there
    }

    fn remove_from_chain(&mut self, entry: EntryRef) -> bool {
        let Some((head, newest)) = self.head() else { return false };
        let (mut id, mut len) = (head, newest);
        while id != NO_CHUNK {
            let chunk = self.chunk(id);
            let found = chunk.refs[..len].iter().rposition(|slot| slot.load(Relaxed) == entry.0);
            if let Some(index) = found {
                // The hole is filled with the newest reference of all.
                let last = self.chunk(head).refs[newest - 1].load(Relaxed);
                chunk.refs[index].store(last, Relaxed);
                self.pop(head, newest - 1);
                return true;
            }
            (id, len) = (chunk.next.load(Relaxed), PER_CHUNK);
        }
        false
    }

    /// Leaves the chain's first chunk, `head`, with `len` references. A chain that is left with two
    /// becomes a plain list again, so chunks are only held by lists that need them.
    fn pop(&mut self, head: u32, len: usize) {
        let chunk = self.chunk(head);
        let next = chunk.next.load(Relaxed);
        if next == NO_CHUNK && len == 2 {
            let [first, second] = [0, 1].map(|n| stored(EntryRef(chunk.refs[n].load(Relaxed))));
            self.word = first | second << BITS;
            self.chunks.free(head);
        } else if len == 0 {
            self.set_head(next, PER_CHUNK);
            self.chunks.free(head);
        } else {
            self.set_head(head, len);
        }
    }

    /// The newest reference.
    pub(crate) fn newest(&self) -> Option<EntryRef> {
        match (self.head(), self.first(), self.second()) {
            (Some((head, len)), _, _) => {
                Some(EntryRef(self.chunk(head).refs[len - 1].load(Relaxed)))
            }
            (None, 0, _) => None,
            (None, first, 0) => Some(loaded(first)),
            (None, _, second) => Some(loaded(second)),
        }
    }

    /// Calls `visit` for every reference.
    #[inline]
    pub(crate) fn for_each(&self, mut visit: impl FnMut(EntryRef)) {
        let Some((mut id, mut len)) = self.head() else {
            for word in [self.first(), self.second()] {
                if word != 0 {
                    visit(loaded(word));
                }
            }
            return;
        };
        while id != NO_CHUNK {
            let chunk = self.chunk(id);
            for slot in &chunk.refs[..len] {
                visit(EntryRef(slot.load(Relaxed)));
            }
            (id, len) = (chunk.next.load(Relaxed), PER_CHUNK);
        }
    }

    fn chunk(&self, id: u32) -> &'a Chunk {
        &self.chunks.chunks[id as usize]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, vec::Vec};

    fn contents(list: &RefList, chunks: &Chunks) -> Vec<u32> {
        let mut all = Vec::new();
        list.lock(chunks).for_each(|entry| all.push(entry.0));
        all.sort_unstable();
        all
    }

    proptest! {
        /// Any sequence of additions and removals keeps the list equal to a set, and an emptied
        /// list gives all its chunks back.
        #[test]
        fn a_list_is_a_set(ops in prop::collection::vec((any::<bool>(), 0u32..40), 0..400)) {
            let (list, chunks) = (RefList::new(), Chunks::new(16));
            let mut model = BTreeSet::new();
            for (add, value) in ops {
                let entry = EntryRef(value);
                let mut locked = list.lock(&chunks);
                if add && !model.contains(&value) {
                    locked.add(entry).unwrap();
                    model.insert(value);
                } else if !add {
                    prop_assert_eq!(locked.remove(entry), model.remove(&value));
                }
                drop(locked);
                prop_assert_eq!(contents(&list, &chunks), model.iter().copied().collect::<Vec<_>>());
            }
            for value in model {
                list.lock(&chunks).remove(EntryRef(value));
            }
            prop_assert!(list.lock(&chunks).is_empty());
            prop_assert_eq!((0..17).filter(|_| chunks.alloc().is_some()).count(), 16);
        }
    }

    #[test]
    fn running_out_of_chunks_is_an_error() {
        let (list, chunks) = (RefList::new(), Chunks::new(1));
        let mut locked = list.lock(&chunks);
        for value in 0..PER_CHUNK as u32 {
            locked.add(EntryRef(value)).unwrap();
        }
        assert_eq!(locked.add(EntryRef(99)), Err(NoMemory));
        assert_eq!(locked.newest(), Some(EntryRef(PER_CHUNK as u32 - 1)));
    }
}
