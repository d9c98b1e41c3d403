//! Disks: L1's virtio disks behind the interface that stock kernels have a driver for.
//! May: nothing; `service` reaches guest memory and L1. Context: shim. Input: guest-controlled.
//!
//! `xenbus` comes to terms with the front end by the store, `disk` moves requests from the front end's
//! `ring` to the device's `queue` and what became of them back, `device` starts and resets the device.

pub mod device;
pub mod disk;
pub mod queue;
pub mod request;
pub mod ring;
pub mod xenbus;

#[cfg(target_os = "none")]
mod service;
#[cfg(target_os = "none")]
pub use self::service::{attach, follow, interrupt, kick, store_changed};
