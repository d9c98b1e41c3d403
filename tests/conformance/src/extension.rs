//! Roost's extension, as far as the hypervisor has it.

use crate::{
    abi,
    tap::{Verdict, equal, skip},
};
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
use pv_abi::{
    cpuid,
    ext::{Features, VERSION, call},
};

const ABSENT: u8 = 0;
const PRESENT: u8 = 1;
const STRANGE: u8 = 2;

/// What detection has found.
static FOUND: AtomicU8 = AtomicU8::new(ABSENT);

/// Looks for it: a guest refuses a major version that it does not know.
pub fn detect() {
    let [max, ebx, ecx, edx] = abi::cpuid(cpuid::ROOST_BASE, 0);
    let signed = max > cpuid::ROOST_BASE && [ebx, ecx, edx] == cpuid::ROOST_SIGNATURE;
    let known = abi::cpuid(cpuid::ROOST_BASE + 1, 0)[0] >> 16 == VERSION >> 16;
    let found = match (signed, known) {
        (false, _) => ABSENT,
        (true, false) => STRANGE,
        (true, true) => PRESENT,
    };
    FOUND.store(found, Relaxed);
}

/// Whether it is there in a version that this program knows.
pub fn present() -> bool {
    FOUND.load(Relaxed) == PRESENT
}

/// Skips a check where it is not.
pub fn needed() -> Verdict {
    match FOUND.load(Relaxed) {
        PRESENT => Ok(()),
        STRANGE => skip("the extension has a major version that is not known here"),
        _ => skip("this hypervisor has no extension"),
    }
}

/// `major << 16 | minor`.
pub fn version() -> u32 {
    abi::cpuid(cpuid::ROOST_BASE + 1, 0)[0]
}

/// What may be enabled.
pub fn offered() -> Features {
    Features::from_bits_retain(abi::cpuid(cpuid::ROOST_BASE + 1, 0)[1])
}

/// What is enabled, as the leaf says.
pub fn enabled() -> Features {
    Features::from_bits_retain(abi::cpuid(cpuid::ROOST_BASE + 1, 0)[2])
}

/// Enables `features`; skips the check if they are not offered.
pub fn enable(features: Features) -> Verdict {
    needed()?;
    if !offered().contains(features) {
        return skip("the feature is not offered");
    }
    let before = enabled();
    equal("ENABLE", abi::call1(call::ENABLE, features.bits().into()), 0)?;
    equal("enabled", enabled().bits().into(), (before | features).bits().into())
}

/// Keeps the page at guest-physical `page` from devices.
pub fn unshare(page: u64) -> Verdict {
    equal("UNSHARE", abi::call(call::UNSHARE, [page, 1, 0, 0]), 0)
}

/// Lets devices use it again.
pub fn share(page: u64) -> Verdict {
    equal("SHARE", abi::call(call::SHARE, [page, 1, 0, 0]), 0)
}

/// Has the hypervisor look for entries in shadow tables that must not be there, if it can.
pub fn check_roots() -> Verdict {
    if !present() {
        return Ok(());
    }
    equal("violations", abi::call(call::CHECK_ROOTS, [0; 4]), 0)
}
