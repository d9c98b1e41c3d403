//! Devices that L1 models for guests.

pub mod bus;
pub mod ioapic;
pub mod uart;
