//! The in-guest personality that lets stock kernels boot.
//!
//! A stock kernel carries the guest side of the Xen PV interface. The shim gives it the other side
//! from inside the guest, at CPL3, and speaks the native ABI to L1. A bug in it, or in the kernel
//! image it parses, costs that guest and nothing else; and most hypercalls become plain calls
//! that never enter L1.
//!
//! Reading order: `boot.rs` (start), `entry.S` (all entries), `traps.rs` (events to frames),
//! `hypercalls/` (the calls), `guest.rs` (event channels, roots). Parts that need no guest are
//! compiled and tested on the host as well: [`image`], [`layout`], [`evtchn`], [`time`].
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod blk;
pub mod evtchn;
pub mod grants;
pub mod guest_memory;
pub mod image;
pub mod layout;
pub mod net;
pub mod store;
pub mod time;
pub mod virtio;
pub mod xen;
pub mod xenbus;

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod cpuid;
#[cfg(target_os = "none")]
mod debug;
#[cfg(target_os = "none")]
mod devices;
#[cfg(target_os = "none")]
pub mod entry;
#[cfg(target_os = "none")]
mod flat;
#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod hw;
#[cfg(target_os = "none")]
mod hypercalls;
#[cfg(target_os = "none")]
mod m2p;
#[cfg(target_os = "none")]
mod regs;
#[cfg(target_os = "none")]
mod start_info;
#[cfg(target_os = "none")]
mod traps;
#[cfg(target_os = "none")]
mod userio;
