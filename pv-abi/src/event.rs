//! Vectors of the events L1 delivers (spec part 1.5).
//! May: nothing. Input: trusted.

#![expect(missing_docs, reason = "the names are the manual's")]

pub const DE: u8 = 0;
pub const DB: u8 = 1;
pub const NMI: u8 = 2;
pub const BP: u8 = 3;
pub const OF: u8 = 4;
pub const BR: u8 = 5;
pub const UD: u8 = 6;
pub const NM: u8 = 7;
pub const DF: u8 = 8;
pub const TS: u8 = 10;
pub const NP: u8 = 11;
pub const SS: u8 = 12;
pub const GP: u8 = 13;
pub const PF: u8 = 14;
pub const MF: u8 = 16;
pub const AC: u8 = 17;
pub const MC: u8 = 18;
pub const XM: u8 = 19;
/// INT 0x80 from either mode.
pub const INT80: u8 = 0x80;

/// True for the exceptions that push an error code.
#[must_use]
pub const fn has_error_code(vector: u8) -> bool {
    matches!(vector, DF | TS | NP | SS | GP | PF | AC | 21)
}

/// RFLAGS bits a guest context may carry; everything else is forced (IF and bit 1 set, rest clear).
/// CF PF AF ZF SF TF DF OF NT RF AC ID.
pub const RFLAGS_ALLOWED: u64 = 0x0025_4dd5;
/// RFLAGS bits that are always set while a guest runs: IF and bit 1.
pub const RFLAGS_FORCED: u64 = 0x202;
/// RFLAGS bits that no CPU has set while a guest runs: IOPL, VM, those of virtual interrupts, and those that are
/// always 0.
pub const RFLAGS_NEVER: u64 = !(RFLAGS_ALLOWED | RFLAGS_FORCED);
/// The flags that arithmetic sets: CF PF AF ZF SF OF.
pub const RFLAGS_ARITHMETIC: u64 = 0x8d5;
/// Trap flag.
pub const RFLAGS_TF: u64 = 1 << 8;
/// Interrupt flag.
pub const RFLAGS_IF: u64 = 1 << 9;
/// Resume flag.
pub const RFLAGS_RF: u64 = 1 << 16;

/// Page-fault error code bits (SDM vol. 3, 4.7).
pub mod pf {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const RESERVED: u64 = 1 << 3;
    pub const FETCH: u64 = 1 << 4;
}
