//! Calls L0, and asks the CPU what it offers.
//! May: unsafe, port-io. Context: any but an L0 call.
#![expect(unsafe_code, reason = "the instructions that leave for L0")]

use core::arch::asm;
use pv_abi::l0::{Discovery, discover, discover::Transports};
use x86_64::instructions::port::Port;

/// The way to call L0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// OUT to this port.
    Port(u16),
    /// VMCALL (Intel).
    Vmcall,
    /// VMMCALL (AMD).
    Vmmcall,
}

impl Transport {
    /// The cheapest of those offered; `port` belongs to [`Transports::PORT`].
    #[must_use]
    pub fn choose(offered: Transports, port: u16) -> Option<Self> {
        if offered.contains(Transports::VMCALL) {
            Some(Self::Vmcall)
        } else if offered.contains(Transports::VMMCALL) {
            Some(Self::Vmmcall)
        } else {
            offered.contains(Transports::PORT).then_some(Self::Port(port))
        }
    }

    /// Asks L0 for what `word` says. Arguments and result are in the shared page.
    pub fn call(self, word: u32) {
        // SAFETY: 1. L0 has advertised this transport in its CPUID leaves, so the instruction
        //    does nothing else.
        // 2. What L0 writes, by the specification, is the shared page and the memory that
        //    arguments name: atomics to L1 (`physmap::frame`), never under a Rust reference.
        unsafe {
            match self {
                Self::Port(port) => Port::<u32>::new(port).write(word),
                Self::Vmcall => asm!("vmcall", inout("eax") word => _, options(nostack)),
                Self::Vmmcall => asm!("vmmcall", inout("eax") word => _, options(nostack)),
            }
        }
    }
}

/// CPUID: EAX, EBX, ECX, EDX.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// Looks for L0's offer.
#[must_use]
pub fn find() -> Discovery {
    discover(cpuid)
}
