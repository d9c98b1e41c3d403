//! The flat selectors of Xen's own descriptor table, which kernels other than Linux make use of.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled instruction bytes.
//!
//! The CPU runs on L1's table, which does not reach that far. So a load of such a selector into a
//! data segment register faults, and the selector that means the same here is loaded instead.

use crate::{
    guest,
    hw::{
        copy,
        segment::{self, Segment},
    },
    regs::Regs,
};
use pv_abi::selectors::{USER_CS, USER_DS, USER32_CS};

/// Flat 32-bit code, data, 64-bit code, at privilege 3.
const CODE32: u64 = 0xe023;
const DATA: u64 = 0xe02b;
const CODE64: u64 = 0xe033;

/// The selector that means here what `selector` means to Xen.
pub fn ours(selector: u64) -> u64 {
    match selector {
        CODE32 => USER32_CS.into(),
        DATA => USER_DS.into(),
        CODE64 => USER_CS.into(),
        _ => selector,
    }
}

/// Carries out the MOV from a register to DS, ES, FS or GS that `regs` is at, if it faulted with
/// `error` because of Xen's data selector.
pub fn emulate_load(regs: &mut Regs, error: u16) -> bool {
    const MOV: u8 = 0x8e;
    if !guest::is_foreign() || u64::from(error) != DATA & !3 {
        return false;
    }
    let mut bytes = [0; 4];
    let read = copy::read_anywhere(regs.rip, &mut bytes);
    let prefixes = bytes.iter().take_while(|&&byte| matches!(byte, 0x40..=0x4f | 0x66)).count();
    let [MOV, operands] = bytes[prefixes.min(2)..][..2] else { return false };
    if read < prefixes + 2 || operands >> 6 != 3 {
        return false;
    }
    match operands >> 3 & 7 {
        0 => segment::load_flat(Segment::Es),
        3 => segment::load_flat(Segment::Ds),
        // The base goes along, as it would with the kernel's own load.
        4 => segment::load_flat(Segment::Fs),
        // GS stays as it is, base and all.
        5 => {}
        _ => return false,
    }
    regs.rip += prefixes as u64 + 2;
    true
}
