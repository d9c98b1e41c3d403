//! Measures the shadow MMU on the host: what its operations cost, how they scale, and how they
//! compare with an MMU under one lock.
//!
//! Reading order: [`host`] and [`guest`] (the world), [`design`] (what an MMU can do, and Roost's),
//! [`classic`] and [`baselines`] (what it is compared with), [`ops`] (one vCPU), [`threads`] (several),
//! [`choices`] (parts and their alternatives), [`report`] (what comes out).

pub mod baselines;
pub mod bed;
pub mod choices;
pub mod classic;
pub mod design;
pub mod guest;
pub mod host;
pub mod ops;
pub mod report;
pub mod threads;

// The reverse maps are private to the shadow MMU. What is measured is their own source.
extern crate alloc;
#[path = "../../../shadow-mmu/src/refs.rs"]
#[expect(dead_code, reason = "the MMU uses all of it, this a part")]
mod refs;
mod primitive {
    //! What `refs` takes from its neighbour of this name.
    pub(crate) use core::{
        hint::spin_loop,
        sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    };
    pub(crate) use spin::Mutex;
}
mod page {
    //! And of this.
    pub(crate) use shadow_mmu::page::EntryRef;
}
mod failing {
    //! And of this: no allocation is made to fail here,
    #[derive(Debug, Default)]
    pub(crate) struct Failing {}

    impl Failing {
        #[inline(always)]
        pub(crate) const fn strikes(&self) -> bool {
            false
        }
    }
}
mod mutant {
    //! and no bug is planted.
    pub(crate) use shadow_mmu::mutant::Mutant;

    #[inline(always)]
    pub(crate) const fn planted(_: Mutant) -> bool {
        false
    }
}
