//! Devices: those that L1 models for guests, and those of the machine that it drives for them.

pub mod bus;
#[cfg(target_os = "none")]
pub mod entropy;
pub mod gpt;
#[cfg(target_os = "none")]
pub mod host;
pub mod ioapic;
pub mod offload;
pub mod scsi;
pub mod switch;
pub mod uart;
pub mod virtio;

/// What is left of something that is done in parts, so that nobody else has to wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing.
    Nothing,
    /// Something.
    More,
}
