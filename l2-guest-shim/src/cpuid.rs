//! CPUID as the kernel asks for it: UD2, "xen", CPUID.
//! May: nothing but CPUID. Context: shim. Input: guest-controlled leaf numbers.

use crate::{
    guest::facts,
    hw::{call, copy},
    regs::Regs,
};
use core::arch::x86_64::__cpuid_count;
use pv_abi::{
    cpuid::{ROOST_BASE, ROOST_SIGNATURE},
    ext::counter,
    stock_cpuid,
};

/// The prefix and the instruction.
const SEQUENCE: [u8; 7] = [0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2];

/// Answers if `regs` stands at the sequence.
pub fn emulate(regs: &mut Regs) -> bool {
    let mut bytes = [0; SEQUENCE.len()];
    if copy::read_anywhere(regs.rip, &mut bytes) != bytes.len() || bytes != SEQUENCE {
        return false;
    }
    let [eax, ebx, ecx, edx] = leaf(regs.rax as u32, regs.rcx as u32).map(u64::from);
    (regs.rax, regs.rbx, regs.rcx, regs.rdx) = (eax, ebx, ecx, edx);
    regs.rip += SEQUENCE.len() as u64;
    true
}

fn leaf(number: u32, subleaf: u32) -> [u32; 4] {
    if let Some(counter) = counter::of_leaf(number) {
        let value = call::counter(counter);
        return [value as u32, (value >> 32) as u32, 0, 0];
    }
    if number == ROOST_BASE {
        let [ebx, ecx, edx] = ROOST_SIGNATURE;
        return [counter::LEAF_END - 1, ebx, ecx, edx];
    }
    stock_cpuid::leaf(number, subleaf, facts().end_pages, || {
        let machine = __cpuid_count(number, subleaf);
        [machine.eax, machine.ebx, machine.ecx, machine.edx]
    })
}
