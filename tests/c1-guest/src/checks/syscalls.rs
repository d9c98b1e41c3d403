//! System calls and ERETU.

use super::Check;
use crate::{
    abi,
    entry::Registers,
    tap::{Verdict, equal},
    user::{Start, code},
};
use pv_abi::ext::counter;

pub const CHECKS: &[Check] = &[
    ("syscall.registers", registers),
    ("syscall.direct", direct),
];

/// SYSCALL carries every register in, and ERETU every register back.
fn registers() -> Verdict {
    let mut start = Start::at(code::syscall());
    start.registers = Registers {
        r15: 15, r14: 14, r13: 13, r12: 12, r10: 10, r9: 9, r8: 8, rbp: 7, rdi: 6, rsi: 5,
        rdx: 4, rbx: 3, rax: 1, ..start.registers
    };
    start.rflags = 0x202 | 0x8d5;
    start.gsbase = 0x7000_1000;
    let trap = start.run();
    equal("a system call", trap.vector.is_none().into(), 1)?;
    equal("RIP", trap.rip, code::syscall() + 2)?;
    equal("RCX", trap.registers.rcx, trap.rip)?;
    equal("R11", trap.registers.r11, start.rflags)?;
    equal("flags", trap.rflags, start.rflags)?;
    equal("GS base", trap.gsbase, start.gsbase)?;
    let expected = Registers { rcx: trap.registers.rcx, r11: trap.registers.r11, ..start.registers };
    equal("the rest", (trap.registers == expected).into(), 1)
}

/// A system call and its return never enter L1.
fn direct() -> Verdict {
    const ROUNDS: u64 = 1000;
    let counters = || [abi::counter(counter::EXITS), abi::counter(counter::DIRECT_SWITCHES)];
    Start::at(code::syscall()).run();
    let before = counters();
    for _ in 0..ROUNDS {
        Start::at(code::syscall()).run();
    }
    let after = counters();
    // Reading the two counters is the only thing that entered L1.
    equal("exits", after[0] - before[0], 2)?;
    equal("direct switches", after[1] - before[1], 2 * ROUNDS)
}
