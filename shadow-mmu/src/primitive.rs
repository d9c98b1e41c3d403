//! Names the atomics, locks and waits that everything here uses, in one place, so that a model
//! checker's can stand in for them (`--cfg loom`; `model/loom`).

#[cfg(not(all(test, loom)))]
pub(crate) use core::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence},
};
#[cfg(not(all(test, loom)))]
pub(crate) use spin::Mutex;

#[cfg(all(test, loom))]
pub(crate) use crate::model::loom::atomics::{
    AtomicBool, AtomicU32, AtomicU64, Mutex, fence, spin_loop,
};

pub(crate) use core::sync::atomic::Ordering;

/// The entries of a table.
#[cfg(not(all(test, loom)))]
pub type Entries = [AtomicU64; crate::env::ENTRIES];
#[cfg(all(test, loom))]
pub use crate::model::loom::atomics::Entries;
