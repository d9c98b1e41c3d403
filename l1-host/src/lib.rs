//! L1: the hypervisor proper.
//!
//! Reading order for newcomers: `boot/mod.rs` (start to first guest), `vcpu/run.rs` (the loop),
//! `vcpu/fault.rs` and `vcpu/inject.rs` (a page fault on its way), `vm/vm.rs` and `vm/build.rs`
//! (what a VM is made of), `hw/` (the machine below).
//!
//! Parts that need no bare machine are compiled and tested on the host as well.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod abi_flaw;
pub mod assisted;
#[cfg(target_os = "none")]
mod backend;
#[cfg(target_os = "none")]
pub mod boot;
pub mod console;
pub mod core_dump;
pub mod dev;
#[cfg(target_os = "none")]
mod diagnostics;
pub mod firmware;
pub mod flaw;
#[cfg(target_os = "none")]
mod guests;
#[cfg(target_os = "none")]
pub mod hw;
#[cfg(target_os = "none")]
mod interrupt;
#[cfg(target_os = "none")]
mod live;
#[cfg(target_os = "none")]
pub mod log;
pub mod memory;
pub mod mitigations;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
pub mod pti;
pub mod rate;
pub mod sched;
pub mod stats;
pub mod trace;
pub mod traps;
pub mod vcpu;
pub mod vm;
