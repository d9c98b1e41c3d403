//! A model machine around the shadow MMU: memory, a TLB that never evicts, and an oracle.
//!
//! The machine executes guest accesses the way hardware does: TLB first, then the shadow tables,
//! then a fault into the MMU. Guest stores to page tables are accesses too, so that write
//! protection and D bits do their work. The oracle is slow and obviously right: for every address
//! it keeps each translation that the guest's tables have given since the last flush of that
//! address. An access may use any of those, and nothing else.

mod evicting;
mod hot_tables;
mod large_pages;
mod log;
mod machine;
mod oracle;
mod permissions;
mod random;
mod world;

use world::World;
