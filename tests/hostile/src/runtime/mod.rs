//! Holds what attacks stand on: the machine, and a way to run hostile code and come back.

pub mod abi;
pub mod console;
pub mod counters;
pub mod entry;
pub mod memory;
pub mod piece;
pub mod second;
pub mod trial;
pub mod virtio;

pub use suite::native::registers;
