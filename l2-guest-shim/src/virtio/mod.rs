//! Virtio devices of L1's, as their driver has them: registers and split virtqueues.
//! May: nothing; `slot` reaches L1. Context: shim.

pub mod device;
#[cfg(test)]
pub mod fake;
pub mod queue;
#[cfg(target_os = "none")]
pub mod slot;
