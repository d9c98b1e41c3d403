//! Debug registers: L1 emulates the instructions, and keeps breakpoints off its own memory.
//! May: unsafe. Context: shim, IF = 0. Input: guest-controlled.
#![expect(unsafe_code, reason = "MOV DR traps to L1")]

use core::arch::asm;

macro_rules! registers {
    ($($number:literal $name:literal)*) => {
        /// Writes debug register `number`; false if there is none.
        pub fn write(number: u64, value: u64) -> bool {
            match number {
                $($number => {
                    if !acceptable(number, value) {
                        return false;
                    }
                    // SAFETY: the instruction traps to L1, which changes its copy of the register;
                    // the value is one L1 takes.
                    unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack)) }
                    true
                })*
                _ => false,
            }
        }

        /// Reads debug register `number`.
        pub fn read(number: u64) -> Option<u64> {
            match number {
                $($number => {
                    let value;
                    // SAFETY: as for `write`.
                    unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nostack)) }
                    Some(value)
                })*
                _ => None,
            }
        }
    };
}

registers! {
    0 "dr0"
    1 "dr1"
    2 "dr2"
    3 "dr3"
    6 "dr6"
    7 "dr7"
}

/// A breakpoint on the shim's window would fire in the shim.
const fn acceptable(number: u64, value: u64) -> bool {
    match number {
        0..=3 => {
            let window = value >> 39 & 0x1ff;
            !(window >= 256 && window < 272)
        }
        _ => value >> 32 == 0,
    }
}
