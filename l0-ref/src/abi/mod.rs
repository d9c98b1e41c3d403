//! Serves the L0-L1 ABI (docs/spec/l0-l1.md).
//! Input: guest-controlled. Whatever L1 can write is read once, checked, and then used.
//!
//! | module | holds |
//! |---|---|
//! | [`server`], [`answer`] | calls: the word, the page, the order of checks |
//! | [`offer`] | what discovery says |
//! | [`features`], [`reset`] | what is enabled, withdrawal; the end of everything |
//! | [`l1_memory`], [`lists`] | L1's memory: the shared page, lists |
//! | [`vm`], [`life`] | VMs, their vCPUs and life |
//! | [`map`], [`frames`], [`pieces`], [`join`], [`memory_ops`] | mappings and owners |
//! | [`dirty`] | the log of writes |
//! | [`run`], [`alarm`] | RUN |
//! | [`interrupts`] | kicks, and interrupts of L0's controllers |
//! | [`registers`] | register groups and other state of a vCPU |
//! | [`counters`] | how often what happened |
//! | [`tables`], [`set_tables`] | CPUID tables and MSR policies |

pub mod alarm;
pub mod answer;
pub mod counters;
pub mod dirty;
pub mod features;
pub mod frames;
#[cfg(test)]
mod fuzz;
pub mod interrupts;
pub mod join;
pub mod l1_memory;
#[cfg(test)]
mod l1_stub;
pub mod life;
pub mod lists;
pub mod map;
pub mod memory_ops;
pub mod offer;
pub mod pieces;
pub mod registers;
pub mod reset;
pub mod run;
pub mod server;
pub mod set_tables;
#[cfg(test)]
mod stub;
pub mod tables;
pub mod vm;
