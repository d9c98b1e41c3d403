#![doc = include_str!("../README.md")]
//!
//! # What a kernel may do with it
//!
//! The library owns the entries from the hypervisor, the page tables, and GS. It
//! relies on memory being mapped one to one, as the hypervisor leaves it ([`frame`] hands out what
//! the image does not take): a kernel that loads other tables keeps that mapping. The stack of each vCPU has
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
//! | [`smp`] | running functions on other vCPUs |
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
mod local;
pub mod paging;
mod pvcs;
pub mod smp;
pub mod timer;
pub mod user;

pub use pv_abi;

#[doc(hidden)]
pub use kernel::__private;
