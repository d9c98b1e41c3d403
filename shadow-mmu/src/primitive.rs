//! Names the atomics and locks that everything here uses, in one place, so that a model checker's
//! can stand in for them.

pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
pub(crate) use spin::Mutex;
