//! Network cards: L1's virtio cards behind the interface that stock kernels have a driver for.
//! May: nothing; `service` reaches guest memory and L1. Context: shim. Input: guest-controlled.
//!
//! `nodes` is what the store says of a card, `netif` understands what is in the front end's rings.
//! `transmit` moves frames from one ring to the device's queue, `receive` from the other queue to the
//! other ring. `control` has the device use several pairs of queues, `headers` finds the checksum in a frame, `device`
//! looks at the device. `places` holds what is connected.

pub mod control;
pub mod device;
pub mod headers;
pub mod netif;
pub mod nodes;
pub mod receive;
pub mod transmit;

#[cfg(target_os = "none")]
mod places;
#[cfg(target_os = "none")]
mod service;
#[cfg(target_os = "none")]
pub use self::service::{attach, follow, interrupt, kick, store_changed};
