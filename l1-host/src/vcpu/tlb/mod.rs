//! What the CPU has cached of a vCPU's translations: what is kept, what is dropped.
//!
//! | file | what |
//! |---|---|
//! | `hardware` | the CPU's own TLB: tags where it has them |
//! | `model` | a software TLB that never evicts, beside it (feature `tlb-model`) |
//!
//! Both have the same methods. Those that only the model needs do nothing in the other.

#[cfg(all(target_os = "none", not(feature = "tlb-model")))]
mod hardware;
#[cfg(any(test, feature = "tlb-model"))]
mod model;

#[cfg(all(target_os = "none", not(feature = "tlb-model")))]
pub use hardware::Tlb;
#[cfg(all(target_os = "none", feature = "tlb-model"))]
pub use model::{Tlb, flaw};

#[cfg(target_os = "none")]
use pv_abi::addr::Gva;

/// A flush that the guest asked for and L1 serves.
#[cfg(target_os = "none")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Of the address space that it loads.
    Load,
    /// Of the address space that is loaded.
    Current,
    /// Of every address space.
    All,
    /// Of one address, in every address space.
    Address(Gva),
}
