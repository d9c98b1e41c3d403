//! A software TLB that never evicts, kept beside the CPU's own.
//!
//! QEMU's TCG drops every translation with each load of CR3, and L1 loads CR3 with each entry, so a
//! flush that L1 forgets does no harm there. The model keeps what a CPU with tags might keep. It is
//! filled with what the hardware could have cached, and emptied by what L1 invalidates and by
//! nothing else. Before each entry to the guest it is judged.
//!
//! | file | what |
//! |---|---|
//! | `cache` | what one tag has cached |
//! | `tags` | INVPCID on it |
//! | `walk` | the shadow tables, and the guest's |
//! | `fill` | what the hardware could cache |
//! | `judge` | what it must not have cached |
//! | [`flaw`] | flushes that are missing on purpose |

mod cache;
#[cfg(target_os = "none")]
mod fill;
#[cfg(target_os = "none")]
pub mod flaw;
#[cfg(target_os = "none")]
mod judge;
#[cfg(target_os = "none")]
mod tags;
#[cfg(target_os = "none")]
mod tlb;
#[cfg(target_os = "none")]
mod walk;

#[cfg(target_os = "none")]
pub use tlb::Tlb;
