//! Devices: those that L1 models for guests, and those of the machine that it drives for them.

pub mod bus;
#[cfg(target_os = "none")]
pub mod host;
pub mod ioapic;
pub mod switch;
pub mod uart;
pub mod virtio;
