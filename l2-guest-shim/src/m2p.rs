//! Xen's list from machine to physical frames, at its fixed address, for kernels that do not ask
//! where it is.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled instruction bytes.
//!
//! The address belongs to L1 and is not mapped for guests, so a load from it faults. Both numbers
//! of a frame are the same: what would be loaded follows from the address.

use crate::{
    guest::{self, facts},
    hw::copy,
    regs::Regs,
};

/// First address.
const START: u64 = 0xffff_8000_0000_0000;
/// Bytes of the longest form that is known: prefix, opcode, operands, scale, displacement.
const LONGEST: usize = 8;

/// Carries out the load that `regs` is at, if it faulted at `address` in the list.
pub fn emulate_load(regs: &mut Regs, address: u64) -> bool {
    let offset = address.wrapping_sub(START);
    if !guest::is_foreign() || offset >= 8 * facts().end_pages || !offset.is_multiple_of(8) {
        return false;
    }
    let mut bytes = [0; LONGEST];
    let read = copy::read_anywhere(regs.rip, &mut bytes);
    let Some((register, len)) = decode(&bytes[..read]) else { return false };
    *target(regs, register) = offset / 8;
    regs.rip += len as u64;
    true
}

/// Register number and length of a 64-bit MOV from memory.
fn decode(bytes: &[u8]) -> Option<(u8, usize)> {
    const MOV: u8 = 0x8b;
    let [rex @ 0x48..=0x4f, MOV, operands, ..] = *bytes else { return None };
    let (form, base) = (operands >> 6, operands & 7);
    let scaled = base == 4;
    let displacement = match form {
        0 if base == 5 => 4,
        0 if scaled && bytes.get(3)? & 7 == 5 => 4,
        0 => 0,
        1 => 1,
        2 => 4,
        _ => return None,
    };
    let len = 3 + usize::from(scaled) + displacement;
    (bytes.len() >= len).then_some((operands >> 3 & 7 | (rex & 4) << 1, len))
}

/// The register with this number.
fn target(regs: &mut Regs, number: u8) -> &mut u64 {
    match number {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}
