//! Disks: L1's virtio disks behind the interface that stock kernels have a driver for.
//! May: nothing; `service` reaches guest memory and L1. Context: shim. Input: guest-controlled.
//!
//! `nodes` is what the store says of a disk, `disk` moves requests from the front end's ring to the
//! device's queue and what became of them back, `request` understands them, `device` looks at the device.

pub mod device;
pub mod disk;
pub mod nodes;
pub mod request;

#[cfg(target_os = "none")]
mod service;
#[cfg(target_os = "none")]
pub use self::service::{attach, follow, interrupt, kick, store_changed};
