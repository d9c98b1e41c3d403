//! Fixes the extended state that guests may use.
//! May: unsafe, msr. Context: boot.
#![expect(unsafe_code, reason = "XCR0")]

use super::features::Features;
use x86_64::registers::{
    control::{Cr4, Cr4Flags},
    xcontrol::{XCr0, XCr0Flags},
};

/// x87, SSE, AVX and AVX-512: all that needs no further set-up and no other register to switch.
/// PKRU is left out (protection keys are not offered), and so is AMX (it needs permission bits).
const WANTED: u64 = 0xe7;

/// Enables what the CPU has of it, the same for every guest and for good: XSAVE is native in
/// guests, and a register that differed between them would cost an L0 exit per switch.
pub fn init(features: &Features) -> u64 {
    if !features.xsave {
        return 0;
    }
    // SAFETY: the CPU has XSAVE. L1 is compiled without any vector registers.
    unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::OSXSAVE)) };
    let supported =
        raw_cpuid::CpuId::new().get_extended_state_info().map_or(3, |_| supported_mask());
    let mut value = supported & WANTED;
    if value & 0xe0 != 0xe0 {
        value &= !0xe0;
    }
    // SAFETY: a subset of what CPUID leaf 0xd lists; x87 is always in it; AVX-512 only whole.
    unsafe { XCr0::write(XCr0Flags::from_bits_truncate(value)) };
    value
}

fn supported_mask() -> u64 {
    let leaf = raw_cpuid::cpuid!(0xd, 0);
    u64::from(leaf.eax) | u64::from(leaf.edx) << 32
}

/// What is enabled on this CPU; 0 without XSAVE.
#[must_use]
pub fn enabled() -> u64 {
    if Cr4::read().contains(Cr4Flags::OSXSAVE) { XCr0::read_raw() } else { 0 }
}
