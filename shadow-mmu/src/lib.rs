//! A parallel shadow MMU, free of any CPU.
//!
//! The guest's page tables say which guest-virtual address is which guest-physical one; the shadow
//! tables, which the hardware walks, say which host-physical one. This crate keeps the second
//! true to the first. It reaches the world through three traits ([`mod@env`]), so that it runs unchanged
//! inside L1 and on a host under property tests.
//!
//! Reading order: [`mod@env`] (the world), [`pte`] (entries), [`walk`] (the guest's tables), [`page`]
//! (shadow pages and their roles), [`fault`], `path` and `install` (how an entry comes to be), [`sync`] (how it is kept
//! true), [`zap`] (how it goes), [`root`] (address spaces), [`tlb`] (hardware tags).
//!
//! # Rules
//! Rule names (I1, F3, N4, ...) are those of `docs/shadow-mmu.md`; the code cites them where they
//! are kept. In one breath: an entry is installed in three steps so that a racing flush wins; a
//! found child is checked before it is used; an entry is removed, never redirected; a flush looks
//! at the tables that may have changed, and always at the hardware TLB; the guest's A and D bits
//! are set by compare-exchange on the very value that was walked.
//!
//! # Locks
//! From the outside in: the lock bit of a chain in `map` → the free list; the lock bit of one reference list
//! (`refs`) → the chunk list. Two locks of one kind are never held together. The fault path of
//! an address whose tables are shadowed takes one lock bit, that of the frame it maps.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod dirty;
pub mod env;
mod evict;
pub mod failing;
pub mod fault;
mod hot;
pub mod inspect;
mod install;
mod large;
mod map;
mod mmu;
pub mod mutant;
pub mod page;
mod path;
mod primitive;
pub mod pte;
mod refs;
pub mod root;
pub mod sync;
pub mod tlb;
mod upper;
pub mod walk;
pub mod zap;

#[cfg(test)]
mod model;

pub use env::{GuestMemory, TablePool, TlbOps};
pub use fault::{Access, Next, Outcome};
pub use mmu::{Config, Mmu, Stats};
pub use root::{Roots, VcpuMmu};
