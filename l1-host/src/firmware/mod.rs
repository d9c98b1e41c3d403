//! Understands what firmware leaves in memory and in chips.

pub mod mailbox;
pub mod mp_table;
pub mod rtc;
pub mod s5;
pub mod virtio_mmio;
