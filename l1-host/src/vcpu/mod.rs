//! Virtual CPUs: their state, their run loop, and what L1 does for them.
//!
//! | file | what |
//! |---|---|
//! | `run` | the loop: enter, decode the exit, dispatch |
//! | `switch` | on to a CPU and off again |
//! | `alone` | the way in where L1 wants a core for itself |
//! | `remote` | what others may do to it: interrupts, flushes, waking |
//! | `fault` | page faults |
//! | `inject` | events and interrupts into the guest |
//! | `syscall` | SYSCALL in either mode, ERETU, the hypercalls of the native ABI |
//! | `extension` | the hypercalls of Roost's extension |
//! | `registers` | MSRs | `cpuid` | CPUID leaves |
//! | `emulate`, `mmio` | instructions that trap |
//! | `segments`, `debug` | descriptors, breakpoints |
//! | `observe` | last exits, live counters, registers for whoever asks |
//! | `tlb` | what the CPU has cached of their translations |
//! | `timer`, [`look`] | the timer's word that a guest shares, and when L1 looks at it |
//! | `dirty` | a check of the dirty log (feature `dirty-check`) |
//! | [`apic`] | the virtual local APIC |

pub mod apic;
pub mod look;
#[cfg(target_os = "none")]
pub mod remote;
pub mod stop;

#[cfg(target_os = "none")]
mod access;
#[cfg(target_os = "none")]
mod alone;
#[cfg(target_os = "none")]
mod cpuid;
#[cfg(target_os = "none")]
mod debug;
#[cfg(all(target_os = "none", feature = "dirty-check"))]
pub mod dirty;
#[cfg(target_os = "none")]
mod emulate;
#[cfg(target_os = "none")]
mod extension;
#[cfg(target_os = "none")]
mod fault;
#[cfg(target_os = "none")]
mod inject;
#[cfg(target_os = "none")]
mod mmio;
#[cfg(target_os = "none")]
mod observe;
#[cfg(target_os = "none")]
mod pvcs;
#[cfg(target_os = "none")]
mod registers;
#[cfg(target_os = "none")]
mod run;
#[cfg(target_os = "none")]
mod segments;
#[cfg(target_os = "none")]
mod smp;
#[cfg(target_os = "none")]
mod state;
#[cfg(target_os = "none")]
mod steal;
#[cfg(target_os = "none")]
mod switch;
#[cfg(target_os = "none")]
mod syscall;
#[cfg(target_os = "none")]
mod timer;
mod tlb;

#[cfg(target_os = "none")]
pub use state::Vcpu;
pub use stop::Leave;
#[cfg(all(target_os = "none", feature = "tlb-model"))]
pub use tlb::flaw;
