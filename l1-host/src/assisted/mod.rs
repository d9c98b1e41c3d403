//! The backend that has L0 run the guest (docs/spec/l0-l1.md): no shadow tables, no PV interface.
//!
//! | file | what |
//! |---|---|
//! | `client` | the shared page and the calls |
//! | `build` | a VM and its vCPU, asked of L0 |
//! | `run` | the loop: RUN, see why it came back, do something about it |
//! | [`devices`] | the console's UART and the power switch |
//! | [`layout`], [`linux`], [`acpi`], [`cpuid`], [`msrs`] | the machine that a kernel finds |

pub mod acpi;
pub mod cpuid;
pub mod devices;
pub mod layout;
pub mod linux;
pub mod msrs;
pub mod start;

#[cfg(target_os = "none")]
mod build;
#[cfg(target_os = "none")]
mod client;
#[cfg(target_os = "none")]
mod run;

#[cfg(target_os = "none")]
pub use build::{Machine, Refusal, build};

/// First port of the console's UART.
pub const UART: u16 = 0x3f8;
/// Its line of the I/O APIC.
pub const UART_LINE: u32 = 4;
