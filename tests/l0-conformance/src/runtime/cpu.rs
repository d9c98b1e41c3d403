//! Executes single instructions: ports, CPUID, time, MSRs, string I/O.
//! May: unsafe, asm, port-io, msr. Context: any.
#![expect(unsafe_code, reason = "instructions")]

use core::arch::{asm, x86_64 as arch};

/// Writes a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: ports of this machine are the program's; none reaches its memory.
    unsafe { x86_64::instructions::port::Port::new(port).write(value) }
}

/// Writes a port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as in `out8`.
    unsafe { x86_64::instructions::port::Port::new(port).write(value) }
}

/// Writes a port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as in `out8`. A call of L0 writes only what the call names, which is kept outside
    // Rust's memory (`ram`); the compiler takes the instruction for one that may write any memory.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
    }
}

/// Reads a port.
pub fn in8(port: u16) -> u8 {
    // SAFETY: as in `out8`.
    unsafe { x86_64::instructions::port::Port::new(port).read() }
}

/// Reads a port.
pub fn in32(port: u16) -> u32 {
    // SAFETY: as in `out8`.
    unsafe { x86_64::instructions::port::Port::new(port).read() }
}

/// Writes `word` to a port as a string of one element.
pub fn outs32(port: u16, word: u32) {
    // SAFETY: RSI points to a live value; the direction flag is clear in Rust code.
    unsafe {
        asm!("outsd", in("dx") port, inout("rsi") &raw const word => _, options(nostack));
    }
}

/// VMCALL with `word` in EAX.
pub fn vmcall(word: u32) {
    // SAFETY: the caller's L0 offers it; it changes RAX only (L0-CALL-2), memory as in `out32`.
    unsafe { asm!("vmcall", inout("rax") u64::from(word) => _, options(nostack)) }
}

/// VMMCALL with `word` in EAX.
pub fn vmmcall(word: u32) {
    // SAFETY: as in `vmcall`.
    unsafe { asm!("vmmcall", inout("rax") u64::from(word) => _, options(nostack)) }
}

/// CPUID: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let answer = arch::__cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// The TSC; earlier instructions are done, later ones not begun.
pub fn tsc() -> u64 {
    // SAFETY: the instructions exist on every 64-bit CPU.
    unsafe {
        arch::_mm_lfence();
        let now = arch::_rdtsc();
        arch::_mm_lfence();
        now
    }
}

unsafe extern "C" {
    fn call_probe(registers: *mut [u64; 16], how: u32);
}

/// Calls L0 with these registers (by number; RSP is not taken) and returns them as they are then.
/// `how`: 0 OUT, 1 VMCALL, 2 VMMCALL.
pub fn call_with_registers(mut registers: [u64; 16], how: u32) -> [u64; 16] {
    // SAFETY: keeps what the calling convention asks for; RSP is not loaded.
    unsafe { call_probe(&raw mut registers, how) };
    registers
}
