//! General registers as the assembly stores them.
//! May: nothing. Input: whatever a trial left.

use suite::random::Random;

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

impl Registers {
    /// A value of `draw`'s in each.
    pub fn drawn(random: &mut Random, draw: impl Fn(&mut Random) -> u64) -> Self {
        let mut next = || draw(random);
        Self {
            r15: next(),
            r14: next(),
            r13: next(),
            r12: next(),
            r11: next(),
            r10: next(),
            r9: next(),
            r8: next(),
            rbp: next(),
            rdi: next(),
            rsi: next(),
            rdx: next(),
            rcx: next(),
            rbx: next(),
            rax: next(),
            rsp: next(),
        }
    }
}
