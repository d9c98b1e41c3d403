//! General registers as the assembly stores them, and comparing them by name.

use crate::tap::{Verdict, Wrong};

/// The general registers in the order in which the entries push them, lowest address first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub rsp: u64,
}

/// What the assembly loads and stores.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct State {
    pub registers: Registers,
    /// Stored only.
    pub rflags: u64,
}

impl Registers {
    /// A different, recognizable value in every register but RSP.
    pub const fn pattern() -> Self {
        const fn value(number: u64) -> u64 {
            0xa5a5_0000_1234_0000 | number << 32 | number
        }
        Self {
            r15: value(15),
            r14: value(14),
            r13: value(13),
            r12: value(12),
            r11: value(11),
            r10: value(10),
            r9: value(9),
            r8: value(8),
            rbp: value(7),
            rdi: value(6),
            rsi: value(5),
            rdx: value(4),
            rcx: value(3),
            rbx: value(2),
            rax: value(1),
            rsp: 0,
        }
    }

    const fn named(&self) -> [(&'static str, u64); 16] {
        [
            ("RAX", self.rax),
            ("RBX", self.rbx),
            ("RCX", self.rcx),
            ("RDX", self.rdx),
            ("RSI", self.rsi),
            ("RDI", self.rdi),
            ("RBP", self.rbp),
            ("RSP", self.rsp),
            ("R8", self.r8),
            ("R9", self.r9),
            ("R10", self.r10),
            ("R11", self.r11),
            ("R12", self.r12),
            ("R13", self.r13),
            ("R14", self.r14),
            ("R15", self.r15),
        ]
    }

    /// Compares every register with `expected`.
    ///
    /// # Errors
    /// Names the first that differs.
    pub fn equal(&self, expected: &Self) -> Verdict {
        let pairs = self.named().into_iter().zip(expected.named());
        match pairs.into_iter().find(|((_, found), (_, wanted))| found != wanted) {
            Some(((what, found), (_, expected))) => Err(Wrong::differs(what, found, expected)),
            None => Ok(()),
        }
    }
}
