//! Serves the L0-L1 ABI (docs/spec/l0-l1.md).
//! Input: guest-controlled. Whatever L1 can write is read once, checked, and then used.
//!
//! | module | holds |
//! |---|---|
//! | [`server`] | calls: the word, the page, the order of checks |
//! | [`offer`] | what discovery says |
//! | [`l1_memory`] | L1's memory: the shared page, lists |
//! | [`vm`] | VMs, their vCPUs and life |
//! | [`map`], [`frames`], [`memory_ops`] | mappings, owners, the log of writes |
//! | [`run`], [`alarm`] | RUN |
//! | [`registers`] | register groups and other state of a vCPU |
//! | [`tables`] | CPUID tables and MSR policies |

pub mod alarm;
pub mod frames;
#[cfg(test)]
mod fuzz;
pub mod l1_memory;
pub mod map;
pub mod memory_ops;
pub mod offer;
pub mod registers;
pub mod run;
pub mod server;
#[cfg(test)]
mod stub;
pub mod tables;
pub mod vm;
