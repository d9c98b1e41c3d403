//! Calls the hypervisor, and reads what a native guest's instructions show.
//! May: unsafe, asm. Context: any. Input: the hypervisor's answers, which the suites judge.
#![expect(unsafe_code, reason = "hypercalls and trapping instructions")]

use core::arch::asm;
use pv_abi::{ext, hypercall as nr, selectors::VCPU_INDEX};

/// Any hypercall (HC-1).
#[inline(never)]
pub fn call(number: u64, [a, b, c, d]: [u64; 4]) -> u64 {
    let answer;
    // SAFETY: the hypervisor preserves every register but RAX, RCX and R11, and more are taken for
    // lost; what a call does to memory is up to its caller.
    unsafe {
        asm!(
            "push rbx", "mov rbx, rdi", "syscall", "pop rbx",
            inlateout("rax") number => answer,
            in("rdi") a, in("r10") b, in("rdx") c, in("rsi") d,
            clobber_abi("C"),
        );
    }
    answer
}

/// A hypercall with one argument.
pub fn call1(number: u64, argument: u64) -> u64 {
    call(number, [argument, 0, 0, 0])
}

/// RDMSR by hypercall.
pub fn rdmsr(index: u32) -> u64 {
    call1(nr::RDMSR, index.into())
}

/// WRMSR by hypercall; false if it was refused.
pub fn wrmsr(index: u32, value: u64) -> bool {
    call(nr::WRMSR, [index.into(), value, 0, 0]) == 0
}

/// Ends the VM, or waits for ever where nothing can end it.
pub fn shutdown(reason: u64) -> ! {
    call1(ext::call::SHUTDOWN, reason);
    loop {
        call(nr::IRQ_HALT, [0; 4]);
    }
}

/// The time-stamp counter.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: no effect but its result.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// What this vCPU's number is, as its descriptor table says (SEL-2); all ones if it does not.
#[must_use]
pub fn vcpu_index() -> u64 {
    let index: u64;
    // SAFETY: LSL changes nothing but its destination and the flags.
    unsafe {
        asm!("lsl {0:e}, {1:e}", inout(reg) u64::MAX => index, in(reg) u32::from(VCPU_INDEX),
            options(nomem, nostack));
    }
    index
}
