#![doc = include_str!("../README.md")]
//!
//! # Modules
//!
//! | module | boundary | specification |
//! |---|---|---|
//! | [`msr`], [`pvcs`], [`hypercall`], [`event`], [`selectors`], [`cpuid`] | guest and L1: PVM ABI, generation C1 | `docs/spec/guest.md`, part 1 |
//! | [`elf_note`] | a native kernel's file and its loader | `docs/spec/guest.md`, 1.10 |
//! | [`ext`] | guest and L1: Roost's own extension | `docs/spec/guest.md`, part 2 |
//! | [`l0`] | L0 and L1: mapping, running and serving L2 VMs | `docs/spec/l0-l1.md` |
//! | [`stock_cpuid`] | shim and L1: what a stock guest's CPUID says | `docs/spec/guest.md`, part 2 |
//! | [`virtio`] | any driver and any device | virtio 1.2 |
//! | `bundle` (a feature) | host tool and L1: the one boot module | `docs/spec/bundle.md` |
//!
//! This crate holds numbers, `repr(C)` layouts and the arithmetic that both sides of a boundary
//! must agree on, and nothing else: no `unsafe`, no assembly, and no allocation without `bundle`.
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
mod macros;

pub mod addr;
#[cfg(feature = "bundle")]
pub mod bundle;
pub mod cpuid;
pub mod elf_note;
pub mod event;
pub mod ext;
pub mod hypercall;
pub mod l0;
pub mod msr;
pub mod pvcs;
pub mod selectors;
pub mod stock_cpuid;
pub mod virtio;

/// Bytes in a page of guest or host memory.
pub const PAGE_SIZE: usize = 4096;
/// `log2` of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
