//! Loom's atomics and lock, with the interfaces and the strength of those they stand in for.

use core::{
    array,
    ops::Index,
    sync::atomic::Ordering::{self, SeqCst},
};
use loom::sync::atomic as checked;
use std::sync::PoisonError;

// Flags are only loaded and stored.
pub(crate) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, fence},
};

/// Entries of a table that exist in a model: the first of both halves. The others are zero for ever.
pub const LIVE: [usize; 3] = [0, 1, 256];

/// Declares an atomic whose read-modify-writes are full barriers, as they are on x86: this crate
/// relies on it. Loads and stores have the ordering that they are given, which is weaker than
/// x86's.
macro_rules! atomic {
    ($name:ident, $value:ty, [$($rmw:ident)*]) => {
        #[derive(Debug)]
        pub struct $name(Option<checked::$name>);

        impl $name {
            pub fn new(value: $value) -> Self {
                Self(Some(checked::$name::new(value)))
            }

            fn checked(&self) -> &checked::$name {
                self.0.as_ref().expect("models have no such entry")
            }

            pub fn load(&self, order: Ordering) -> $value {
                self.0.as_ref().map(|checked| checked.load(order)).unwrap_or_default()
            }

            pub fn store(&self, value: $value, order: Ordering) {
                self.checked().store(value, order);
            }

            $(pub fn $rmw(&self, value: $value, order: Ordering) -> $value {
                let old = self.checked().$rmw(value, order);
                fence(SeqCst);
                old
            })*

            pub fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let result = self.checked().compare_exchange(old, new, success, failure);
                fence(SeqCst);
                result
            }

            pub fn compare_exchange_weak(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(old, new, success, failure)
            }

            pub fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                update: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let result = self.checked().fetch_update(success, failure, update);
                fence(SeqCst);
                result
            }
        }
    };
}

atomic!(AtomicU64, u64, [swap fetch_add fetch_sub fetch_and fetch_or]);
atomic!(AtomicU32, u32, [swap fetch_add fetch_sub fetch_or]);

impl Default for AtomicU32 {
    fn default() -> Self {
        Self::new(0)
    }
}

/// A lock with the interface of `spin::Mutex`.
#[derive(Debug)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entries of a table.
#[derive(Debug)]
pub struct Entries([AtomicU64; LIVE.len()]);

impl Entries {
    pub fn new() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }

    /// Index and value of each entry that exists.
    pub fn live(&self) -> impl Iterator<Item = (usize, &AtomicU64)> {
        LIVE.into_iter().zip(&self.0)
    }

    pub fn get(&self, index: usize) -> Option<&AtomicU64> {
        (index < 512).then(|| &self[index])
    }
}

impl Index<usize> for Entries {
    type Output = AtomicU64;

    fn index(&self, index: usize) -> &AtomicU64 {
        static DEAD: AtomicU64 = AtomicU64(None);
        LIVE.iter().position(|&live| live == index).map_or(&DEAD, |place| &self.0[place])
    }
}
