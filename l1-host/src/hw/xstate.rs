//! Fixes the extended state that guests may use.
//! May: unsafe, msr. Context: boot.
#![expect(unsafe_code, reason = "XCR0")]

use super::{features::Features, physmap};
use crate::memory::{self, paging::NoMemory};
use core::{arch::asm, sync::atomic::Ordering::Relaxed};
use pv_abi::addr::Hpa;
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

/// Where the extended state of a vCPU lies while it is on no CPU.
#[derive(Debug)]
pub struct Area {
    pages: Hpa,
    count: u64,
}

/// Offset of MXCSR, and its value after reset.
const MXCSR: (usize, u64) = (24, 0x1f80);
/// FCW after reset, at offset 0: what FXRSTOR takes, and XRSTOR does not look at.
const FCW: u64 = 0x37f;

impl Area {
    /// One with the state after reset.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new() -> Result<Self, NoMemory> {
        // What XCR0 enables now, on this CPU, is the same on all.
        let bytes = if enabled() == 0 { 512 } else { u64::from(raw_cpuid::cpuid!(0xd, 0).ebx) };
        let count = bytes.div_ceil(4096);
        let pages = memory::take_pages(count, 4096).ok_or(NoMemory)?;
        let mut area = Self { pages, count };
        area.reset();
        Ok(area)
    }

    /// The state after reset.
    pub fn reset(&mut self) {
        physmap::zero(self.pages, self.count << 12);
        let frame = physmap::frame(self.pages);
        frame[0].store(FCW, Relaxed);
        frame[MXCSR.0 / 8].store(MXCSR.1, Relaxed);
    }

    fn address(&self) -> u64 {
        physmap::DIRECT_MAP + self.pages.0
    }

    /// Takes the state of this CPU.
    pub fn save(&mut self) {
        let at = self.address();
        if enabled() == 0 {
            // SAFETY: the area is page-aligned, ours alone, and large enough.
            unsafe { asm!("fxsave64 [{at}]", at = in(reg) at, options(nostack)) }
        } else {
            // SAFETY: as above, for all that XCR0 enables.
            unsafe {
                asm!("xsave64 [{at}]", at = in(reg) at, in("eax") !0, in("edx") !0, options(nostack));
            }
        }
    }

    /// Gives this CPU the state.
    pub fn restore(&self) {
        let at = self.address();
        if enabled() == 0 {
            // SAFETY: the area holds what `reset` or `save` wrote, so nothing in it is reserved. L1
            // uses none of these registers.
            unsafe { asm!("fxrstor64 [{at}]", at = in(reg) at, options(nostack)) }
        } else {
            // SAFETY: as above.
            unsafe {
                asm!("xrstor64 [{at}]", at = in(reg) at, in("eax") !0, in("edx") !0, options(nostack));
            }
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // The next owner must not see it.
        physmap::zero(self.pages, self.count << 12);
        memory::give(self.pages.0..self.pages.0 + (self.count << 12));
    }
}

/// What is enabled on this CPU; 0 without XSAVE.
#[must_use]
pub fn enabled() -> u64 {
    if Cr4::read().contains(Cr4Flags::OSXSAVE) { XCr0::read_raw() } else { 0 }
}
