//! Virtual machines.

pub mod log_share;
pub mod owner;
pub mod ram;

#[cfg(target_os = "none")]
pub mod build;
#[cfg(target_os = "none")]
mod dirty;
#[cfg(target_os = "none")]
pub mod dirty_flaw;
#[cfg(target_os = "none")]
pub mod env;
#[cfg(target_os = "none")]
mod lifecycle;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
pub mod roots;
#[cfg(target_os = "none")]
pub mod vm_window;
#[cfg(target_os = "none")]
pub mod window;
#[cfg(target_os = "none")]
mod window_log;

pub use crate::console;
#[cfg(target_os = "none")]
pub use machine::{Kind, Vm};
