//! Is the L2 side: programs of a few instructions and the VMs they run in.

pub mod code;
pub mod guest;
pub mod layout;
pub mod registers;
