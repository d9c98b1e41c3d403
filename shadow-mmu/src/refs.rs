//! Lists of references to shadow entries: who maps a guest frame (rmap), who links a shadow page.
//! May: nothing. Context: run-loop.
//!
//! A list is two words: a lock bit and up to two references, or the number of a chunk that starts
//! a chain. Two references, one from the kernel's map of all memory and one from user space, are
//! the common case and need no memory.

use crate::{
    page::EntryRef,
    primitive::{
        AtomicU32, AtomicU64, Mutex,
        Ordering::{Acquire, Relaxed, Release},
        spin_loop,
    },
};
use alloc::{boxed::Box, vec::Vec};
use core::array;

const LOCK: u64 = 1;
const CHAIN: u64 = 2;
const SHIFT: u32 = 2;
/// A present reference is stored plus one, so that zero stays "nothing".
const BIAS: u64 = 1;
/// References in a chunk.
const PER_CHUNK: usize = 7;
const NO_CHUNK: u32 = u32::MAX;

/// A lockable list of references.
#[derive(Debug)]
pub(crate) struct RefList {
    /// Lock bit; nothing, the only or the first reference, or (CHAIN) the first chunk.
    first: AtomicU64,
    /// The second reference; nothing in a chain. Changed under the lock only.
    second: AtomicU64,
}

/// A cache line of references. The newest chunk comes first, and the newest reference last in it:
/// short-lived mappings are found at once.
#[derive(Debug)]
#[repr(align(64))]
struct Chunk {
    next: AtomicU32,
    len: AtomicU32,
    refs: [AtomicU64; PER_CHUNK],
}

impl Chunk {
    fn push(&self, entry: EntryRef) {
        let len = self.len.load(Relaxed);
        self.refs[len as usize].store(entry.0, Relaxed);
        self.len.store(len + 1, Relaxed);
    }
}

/// All chunks of a VM.
#[derive(Debug)]
pub(crate) struct Chunks {
    chunks: Box<[Chunk]>,
    free: Mutex<u32>,
}

impl Chunks {
    pub(crate) fn new(capacity: u32) -> Self {
        let chunks: Vec<_> = (0..capacity)
            .map(|id| Chunk {
                next: AtomicU32::new(if id + 1 == capacity { NO_CHUNK } else { id + 1 }),
                len: AtomicU32::new(0),
                refs: array::from_fn(|_| AtomicU64::new(0)),
            })
            .collect();
        let head = if capacity == 0 { NO_CHUNK } else { 0 };
        Self { chunks: chunks.into_boxed_slice(), free: Mutex::new(head) }
    }

    fn alloc(&self) -> Option<u32> {
        let mut free = self.free.lock();
        let id = *free;
        if id == NO_CHUNK {
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

/// A locked list; unlocks when dropped.
pub(crate) struct Locked<'a> {
    list: &'a RefList,
    chunks: &'a Chunks,
    word: u64,
}

impl RefList {
    pub(crate) fn new() -> Self {
        Self { first: AtomicU64::new(0), second: AtomicU64::new(0) }
    }

    #[inline]
    pub(crate) fn lock<'a>(&'a self, chunks: &'a Chunks) -> Locked<'a> {
        loop {
            let word = self.first.load(Relaxed) & !LOCK;
            if self.first.compare_exchange_weak(word, word | LOCK, Acquire, Relaxed).is_ok() {
                return Locked { list: self, chunks, word };
            }
            spin_loop();
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.list.first.store(self.word, Release);
    }
}

const fn stored(entry: EntryRef) -> u64 {
    (entry.0 + BIAS) << SHIFT
}

const fn loaded(word: u64) -> EntryRef {
    EntryRef((word >> SHIFT) - BIAS)
}

impl<'a> Locked<'a> {
    fn head(&self) -> Option<u32> {
        (self.word & CHAIN != 0).then_some((self.word >> SHIFT) as u32)
    }

    fn set_head(&mut self, chunk: u32) {
        self.word = u64::from(chunk) << SHIFT | CHAIN;
    }

    fn second(&self) -> u64 {
        self.list.second.load(Relaxed)
    }

    fn set_second(&self, word: u64) {
        self.list.second.store(word, Relaxed);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.word == 0
    }

    /// Adds `entry`, which must not be in the list.
    #[inline]
    pub(crate) fn add(&mut self, entry: EntryRef) -> Result<(), NoMemory> {
        if self.word == 0 {
            self.word = stored(entry);
            return Ok(());
        }
        if self.word & CHAIN == 0 && self.second() == 0 {
            self.set_second(stored(entry));
            return Ok(());
        }
        self.add_to_chain(entry)
    }

    fn add_to_chain(&mut self, entry: EntryRef) -> Result<(), NoMemory> {
        let head = match self.head() {
            Some(head) if (self.chunk(head).len.load(Relaxed) as usize) < PER_CHUNK => head,
            other => {
                let id = self.chunks.alloc().ok_or(NoMemory)?;
                let chunk = self.chunk(id);
                chunk.next.store(other.unwrap_or(NO_CHUNK), Relaxed);
                chunk.len.store(0, Relaxed);
                if other.is_none() {
                    chunk.push(loaded(self.word));
                    chunk.push(loaded(self.second()));
                    self.set_second(0);
                }
                self.set_head(id);
                id
            }
        };
        self.chunk(head).push(entry);
        Ok(())
    }

    /// Removes `entry`; false if it was not there.
    #[inline]
    pub(crate) fn remove(&mut self, entry: EntryRef) -> bool {
        if self.word == stored(entry) {
            self.word = self.second();
            self.set_second(0);
            return true;
        }
        if self.second() == stored(entry) {
            self.set_second(0);
            return true;
        }
        self.remove_from_chain(entry)
    }

    fn remove_from_chain(&mut self, entry: EntryRef) -> bool {
        let mut id = match self.head() {
            Some(head) => head,
            None => return false,
        };
        let head = id;
        loop {
            let chunk = self.chunk(id);
            let len = chunk.len.load(Relaxed) as usize;
            let found = chunk.refs[..len].iter().rposition(|slot| slot.load(Relaxed) == entry.0);
            if let Some(index) = found {
                // The hole is filled with the newest reference of all, so only the first chunk
                // is ever partly filled.
                let first = self.chunk(head);
                let newest = first.len.load(Relaxed) as usize - 1;
                chunk.refs[index].store(first.refs[newest].load(Relaxed), Relaxed);
                self.pop(head);
                return true;
            }
            id = chunk.next.load(Relaxed);
            if id == NO_CHUNK {
                return false;
            }
        }
    }

    /// Drops the newest reference of the chain, whose first chunk is `head`. A chain that is
    /// left with two becomes a plain list again, so chunks are only held by lists that need them.
    fn pop(&mut self, head: u32) {
        let chunk = self.chunk(head);
        let len = chunk.len.load(Relaxed) - 1;
        chunk.len.store(len, Relaxed);
        let next = chunk.next.load(Relaxed);
        if next == NO_CHUNK && len == 2 {
            let [first, second] = [0, 1].map(|n| EntryRef(chunk.refs[n].load(Relaxed)));
            self.word = stored(first);
            self.set_second(stored(second));
            self.chunks.free(head);
        } else if len == 0 {
            self.set_head(next);
            self.chunks.free(head);
        }
    }

    /// The newest reference.
    pub(crate) fn newest(&self) -> Option<EntryRef> {
        match (self.word, self.second()) {
            (0, _) => None,
            (word, 0) if word & CHAIN == 0 => Some(loaded(word)),
            (word, second) if word & CHAIN == 0 => Some(loaded(second)),
            (word, _) => {
                let chunk = self.chunk((word >> SHIFT) as u32);
                let len = chunk.len.load(Relaxed) as usize;
                Some(EntryRef(chunk.refs[len - 1].load(Relaxed)))
            }
        }
    }

    /// Calls `visit` for every reference.
    #[inline]
    pub(crate) fn for_each(&self, mut visit: impl FnMut(EntryRef)) {
        let Some(mut id) = self.head() else {
            for word in [self.word, self.second()] {
                if word != 0 {
                    visit(loaded(word));
                }
            }
            return;
        };
        while id != NO_CHUNK {
            let chunk = self.chunk(id);
            for slot in &chunk.refs[..chunk.len.load(Relaxed) as usize] {
                visit(EntryRef(slot.load(Relaxed)));
            }
            id = chunk.next.load(Relaxed);
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

    fn contents(list: &RefList, chunks: &Chunks) -> Vec<u64> {
        let mut all = Vec::new();
        list.lock(chunks).for_each(|entry| all.push(entry.0));
        all.sort_unstable();
        all
    }

    proptest! {
        /// Any sequence of additions and removals keeps the list equal to a set, and an emptied
        /// list gives all its chunks back.
        #[test]
        fn a_list_is_a_set(ops in prop::collection::vec((any::<bool>(), 0u64..40), 0..400)) {
            let (list, chunks) = (RefList::new(), Chunks::new(8));
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
            prop_assert_eq!((0..9).filter(|_| chunks.alloc().is_some()).count(), 8);
        }
    }

    #[test]
    fn running_out_of_chunks_is_an_error() {
        let (list, chunks) = (RefList::new(), Chunks::new(1));
        let mut locked = list.lock(&chunks);
        for value in 0..PER_CHUNK as u64 {
            locked.add(EntryRef(value)).unwrap();
        }
        assert_eq!(locked.add(EntryRef(99)), Err(NoMemory));
        assert_eq!(locked.newest(), Some(EntryRef(6)));
    }
}
