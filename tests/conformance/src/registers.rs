//! What the assembly stores, and comparing registers by name.

use crate::tap::{Verdict, equal};

pub use suite::native::registers::Registers;

/// What the assembly loads and stores.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct State {
    pub registers: Registers,
    /// Stored only.
    pub rflags: u64,
}

/// Comparing.
pub trait Equal {
    /// Compares every register with `expected`.
    ///
    /// # Errors
    /// Names the first that differs.
    fn equal(&self, expected: &Self) -> Verdict;
}

impl Equal for Registers {
    fn equal(&self, expected: &Self) -> Verdict {
        let mut pairs = self.named().into_iter().zip(expected.named());
        pairs.try_for_each(|((name, found), (_, expected))| equal(name, found, expected))
    }
}
