#![doc = include_str!("../README.md")]
//!
//! # What a kernel may do with it
//!
//! The library is for one vCPU, and owns the entries from the hypervisor and the page tables. It
//! relies on memory being mapped one to one, as the hypervisor leaves it ([`frame`] hands out what
//! the image does not take): a kernel that loads other tables keeps that mapping. Its stack has
//! 64 KiB and no guard below it; events nest on it.
//!
//! | module | holds |
//! |---|---|
//! | [`mod@boot`] | what the kernel is told at its start |
//! | [`console`] | printing |
//! | [`event`] | exceptions and interrupts, and the virtual interrupt flag |
//! | [`hypercall`] | calls of the hypervisor, CPUID |
//! | [`frame`] | memory |
//! | [`paging`] | mapping pages for user mode |
//! | [`timer`] | the local APIC's timer, time |
//! | [`user`] | running user mode |
#![no_std]

pub mod boot;
pub mod console;
mod entry;
pub mod event;
pub mod frame;
pub mod hypercall;
mod kernel;
pub mod paging;
mod pvcs;
pub mod timer;
pub mod user;

pub use pv_abi;

#[doc(hidden)]
pub use kernel::__private;
