//! Reads L1's counters from user mode: leaves behind the `xen` prefix of CPUID.
#![expect(unsafe_code, reason = "an undefined instruction that the hypervisor gives a meaning")]

use super::trap::{Trap, attempt};
use pv_abi::{
    cpuid::{ROOST_BASE, ROOST_SIGNATURE},
    ext::counter,
};

/// What counter `number` stands at. [`super::trap::catch_faults`] must have been called.
///
/// # Errors
/// The instruction faulted: this is no guest of Roost.
pub fn counter(number: u64) -> Result<u64, Trap> {
    let [low, high, ..] = leaf(counter::leaf(number))?;
    Ok(u64::from(high) << 32 | u64::from(low))
}

/// Whether counters can be read here. [`super::trap::catch_faults`] must have been called.
pub fn can_be_read() -> bool {
    leaf(ROOST_BASE).is_ok_and(|registers| registers[1..] == ROOST_SIGNATURE)
}

/// EAX, EBX, ECX and EDX of leaf `number` as the kernel is told them.
/// [`super::trap::catch_faults`] must have been called.
///
/// RBX is the compiler's: R8 stands in for it.
///
/// # Errors
/// The instruction faulted: nobody gives the prefix a meaning.
pub fn leaf(number: u32) -> Result<[u32; 4], Trap> {
    let (eax, ebx, ecx, edx): (u64, u64, u64, u64);
    let trap = attempt!(
        ["mov r8, rbx"] "ud2; .ascii \"xen\"; cpuid" ["xchg r8, rbx"];
        inout("rax") u64::from(number) => eax,
        inout("rcx") 0_u64 => ecx,
        inout("rdx") 0_u64 => edx,
        out("r8") ebx,
    );
    match trap {
        Some(trap) => Err(trap),
        None => Ok([eax, ebx, ecx, edx].map(|value| value as u32)),
    }
}
