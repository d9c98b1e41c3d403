//! The machine L1 runs on. All privileged instructions and all unsafe memory access of L1 are in
//! this folder and in [`crate::boot`].

pub mod apic;
pub mod clock;
pub mod cpu;
pub mod exit;
pub mod features;
pub mod ioapic;
pub mod l0;
pub mod mitigations;
pub mod mmio;
pub mod pci;
pub mod percpu;
pub mod physmap;
pub mod pic;
pub mod pit;
pub mod rtc;
pub mod serial;
pub mod xstate;
