//! A model machine around the shadow MMU: memory, a TLB that never evicts, and an oracle.
//!
//! The machine executes guest accesses the way hardware does: TLB first, then the shadow tables,
//! then a fault into the MMU. Guest stores to page tables are accesses too, so that write
//! protection and D bits do their work. The oracle is slow and obviously right: for every address
//! it keeps each translation that the guest's tables have given since the last flush of that
//! address. An access may use any of those, and nothing else.

#[cfg(not(loom))]
mod evicting;
#[cfg(not(loom))]
mod famine;
#[cfg(not(loom))]
mod hot_tables;
#[cfg(not(loom))]
mod large_pages;
#[cfg(not(loom))]
mod log;
#[cfg(loom)]
pub(crate) mod loom;
#[cfg(not(loom))]
mod machine;
#[cfg(feature = "mutants")]
mod mutation;
#[cfg(not(loom))]
mod oracle;
#[cfg(not(loom))]
mod permissions;
#[cfg(not(loom))]
mod random;
#[cfg(not(loom))]
mod rules;
#[cfg(not(loom))]
mod world;

#[cfg(not(loom))]
use world::World;
