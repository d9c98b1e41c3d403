//! Reverse maps of the conventional MMU: a small vector per frame, two references inline.

use shadow_mmu::page::EntryRef;
use smallvec::SmallVec;
use std::cell::RefCell;

/// The shadow entries that map a frame.
pub type Rmap = SmallVec<[EntryRef; 2]>;

/// How the reverse map of one frame is kept from two users at once.
pub trait RmapCell: Default + Send {
    /// Calls `f` with the map.
    fn with<T>(&self, f: impl FnOnce(&mut Rmap) -> T) -> T;
}

/// For one user at a time: somebody else holds a lock.
#[derive(Debug, Default)]
pub struct Alone(RefCell<Rmap>);

impl RmapCell for Alone {
    #[inline]
    fn with<T>(&self, f: impl FnOnce(&mut Rmap) -> T) -> T {
        f(&mut self.0.borrow_mut())
    }
}

/// For readers of a reader-writer lock, who may be several: a lock of its own.
#[derive(Debug, Default)]
pub struct Shared(spin::Mutex<Rmap>);

impl RmapCell for Shared {
    #[inline]
    fn with<T>(&self, f: impl FnOnce(&mut Rmap) -> T) -> T {
        f(&mut self.0.lock())
    }
}
