//! Lets allocations fail on purpose, so that tests see that the MMU survives it.
//! Outside of tests, and without the feature `mutants`, nothing is ever made to fail.

/// Which allocations of a kind fail.
#[cfg(any(test, feature = "mutants"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failures {
    /// None.
    Never,
    /// The one with this number, from 1, counted from now on.
    Only(u64),
    /// Now and then, one in so many.
    OneIn(u32),
}

/// What is allocated.
#[cfg(any(test, feature = "mutants"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supply {
    /// Shadow pages.
    Pages,
    /// Chunks of references.
    Chunks,
}

/// No failures.
#[cfg(not(any(test, feature = "mutants")))]
#[derive(Debug, Default)]
pub(crate) struct Failing {}

#[cfg(not(any(test, feature = "mutants")))]
impl Failing {
    #[inline(always)]
    pub(crate) const fn strikes(&self) -> bool {
        false
    }
}

#[cfg(any(test, feature = "mutants"))]
pub(crate) use chosen::Failing;

#[cfg(any(test, feature = "mutants"))]
mod chosen {
    use super::{Failures, Supply};
    use crate::{
        env::{GuestMemory, TablePool, TlbOps},
        mmu::Mmu,
    };
    use core::iter;
    // Not a model checker's: failures are no step of a model.
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

    /// Fails the allocations of one kind that it was told to.
    #[derive(Debug, Default)]
    pub(crate) struct Failing {
        /// Allocations so far.
        count: AtomicU64,
        /// The one that fails; zero is none.
        only: AtomicU64,
        /// One in so many fails; zero is none.
        one_in: AtomicU32,
    }

    impl Failing {
        fn set(&self, failures: Failures) {
            let (only, one_in) = match failures {
                Failures::Never => (0, 0),
                Failures::Only(number) => (number, 0),
                Failures::OneIn(many) => (0, many),
            };
            self.count.store(0, Relaxed);
            self.only.store(only, Relaxed);
            self.one_in.store(one_in, Relaxed);
        }

        /// True if this allocation fails.
        pub(crate) fn strikes(&self) -> bool {
            let number = self.count.fetch_add(1, Relaxed) + 1;
            let one_in = u64::from(self.one_in.load(Relaxed));
            number == self.only.load(Relaxed) || one_in != 0 && mixed(number).is_multiple_of(one_in)
        }
    }

    /// A number that looks random, and is the same every time (SplitMix64).
    const fn mixed(number: u64) -> u64 {
        let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    impl<E: GuestMemory + TablePool + TlbOps> Mmu<E> {
        fn failing(&self, supply: Supply) -> impl Iterator<Item = &Failing> {
            let (first, second) = match supply {
                Supply::Pages => (&self.pages.failing, None),
                // Leaf entries and links have chunks of their own.
                Supply::Chunks => (&self.chunks.failing, Some(&self.link_chunks.failing)),
            };
            iter::once(first).chain(second)
        }

        /// From now on, allocations of `supply` fail as `failures` says.
        pub fn fail(&self, supply: Supply, failures: Failures) {
            self.failing(supply).for_each(|kind| kind.set(failures));
        }

        /// Allocations of `supply` since the last [`Self::fail`].
        pub fn allocations(&self, supply: Supply) -> u64 {
            self.failing(supply).map(|kind| kind.count.load(Relaxed)).sum()
        }
    }
}
