//! What the shim touches directly: its vCPU areas, guest memory, L1. All of its unsafe code is
//! here and in `entry`.

pub mod area;
pub mod call;
pub mod copy;
pub mod heap;
pub mod lock;
pub mod memory;
pub mod segment;
