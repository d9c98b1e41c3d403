//! General registers as the assembly stores them.
//! May: nothing. Input: whatever was in them.

use crate::random::Random;

/// The general registers in the order in which the entries push them, lowest address first.
#[expect(missing_docs, reason = "the names are the manual's")]
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
    /// Their names and values, in the order of the encoding.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 16] {
        [
            ("RAX", self.rax),
            ("RCX", self.rcx),
            ("RDX", self.rdx),
            ("RBX", self.rbx),
            ("RSP", self.rsp),
            ("RBP", self.rbp),
            ("RSI", self.rsi),
            ("RDI", self.rdi),
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

    /// A value of `next`'s in each, R15 first and RSP last.
    pub fn each(mut next: impl FnMut() -> u64) -> Self {
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

    /// A value of `draw`'s in each.
    pub fn drawn(random: &mut Random, draw: impl Fn(&mut Random) -> u64) -> Self {
        Self::each(|| draw(random))
    }

    /// A different, recognizable value in every register but RSP.
    #[must_use]
    pub fn pattern() -> Self {
        let mut number = 16;
        let all = Self::each(|| {
            number -= 1;
            0xa5a5_0000_1234_0000 | number << 32 | number
        });
        Self { rsp: 0, ..all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_value() {
        let pattern = Registers::pattern();
        assert_eq!((pattern.r15, pattern.rsp), (0xa5a5_000f_1234_000f, 0));
        assert_eq!(pattern.rax, 0xa5a5_0001_1234_0001);
        let mut values = pattern.named().map(|(_, value)| value);
        values.sort_unstable();
        assert!(values.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
