//! 32-bit user code: CS 0x23.

use super::{Group, Setting, check};
use crate::{
    counters::{Counters, Exit},
    paging::{self, A, P, U, W},
    tap::{Verdict, equal, holds},
    user::{self, Start, Trap},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::event::{BR, GP, INT80, OF, PF, UD, pf};

pub const GROUP: Group = Group {
    name: "compat",
    setting: Setting::Anywhere,
    checks: &[
        check("runs_32_bit_code", "SEL-1 RET-1 EVT-1", runs_32_bit_code),
        check("registers", "EVT-1 RET-1", registers),
        check("far_jump", "SEL-1 EVT-1", far_jump),
        check("page_fault", "EVT-1 EVT-8", page_fault),
        check("bound", "EVT-1 EVT-7", bound),
        check("into", "SEL-3 EVT-1", into),
        check("syscall", "EVT-6", syscall),
        check("sysenter", "EVT-6", sysenter),
    ],
};

/// A prefix: the access goes by SS. DS is null, which 64-bit code may have and 32-bit code not use.
const SS: u8 = 0x36;
const SELECTORS: u32 = 0x002b_0023;
/// Where the code lies.
const CODE: u64 = paging::AREA;
/// And data.
const DATA: u64 = paging::AREA + 4096;

fn run(bytes: &[u8]) -> Trap {
    start(bytes).run()
}

fn start(bytes: &[u8]) -> Start {
    paging::set_area(0, paging::frame(0) | P | W | U | A);
    paging::set_area(1, paging::frame(1) | P | W | U | A);
    paging::write_bytes(paging::frame(0), bytes);
    Start { selectors: SELECTORS, ..Start::at(CODE) }.with(|r| r.rbx = DATA)
}

/// 0x40 is INC EAX there and a mere prefix in 64-bit code; INT 0x80 is the way back.
fn runs_32_bit_code() -> Verdict {
    const INC_INT80: [u8; 3] = [0x40, 0xcd, 0x80];
    let start = start(&INC_INT80).with(|r| r.rax = 0x41);
    let trap = start.run();
    trap.is(INT80, 0, CODE + 3)?;
    equal("EAX", trap.registers.rax, 0x42)?;
    equal("selectors", trap.event.selectors.into(), SELECTORS.into())?;
    let seen = Counters::of(|| start.run());
    seen.exactly(&[(Exit::Eretu, 1), (Exit::SoftwareInterrupt, 1)])
}

/// The registers that 32-bit code has arrive and come back.
fn registers() -> Verdict {
    // mov esi, eax; add edi, ebp; int 0x80
    let trap = start(&[0x89, 0xc6, 0x01, 0xef, 0xcd, 0x80])
        .with(|r| (r.rax, r.rdi, r.rbp, r.rdx) = (0x1234_5678, 1, 2, 0x8000_0000))
        .run();
    trap.is(INT80, 0, CODE + 6)?;
    equal("ESI", trap.registers.rsi, 0x1234_5678)?;
    equal("EDI", trap.registers.rdi, 3)?;
    equal("EDX", trap.registers.rdx, 0x8000_0000)
}

/// User mode may change between 32 and 64 bits by itself.
fn far_jump() -> Verdict {
    start(&[0x40, 0xcd, 0x80]);
    let code = user::code::far_jump();
    let trap = Start::of(code).with(|r| (r.rax, r.rbx, r.rcx) = (1, CODE, 0x23)).run();
    trap.is(INT80, 0, CODE + 3)?;
    equal("selectors", trap.event.selectors.into(), SELECTORS.into())?;
    equal("EAX", trap.registers.rax, 2)
}

/// A fault saves the 32-bit selectors.
fn page_fault() -> Verdict {
    // mov eax, ss:[ebx]
    let trap = start(&[SS, 0x8b, 0x03]).with(|r| r.rbx = paging::area(2)).run();
    trap.is(PF, pf::USER, CODE)?;
    equal("CR2", trap.event.cr2, paging::area(2))?;
    equal("selectors", trap.event.selectors.into(), SELECTORS.into())
}

/// BOUND exists there only.
fn bound() -> Verdict {
    let start = start(&[SS, 0x62, 0x03, 0xcd, 0x80]);
    paging::word(paging::frame(1)).store(20 << 32 | 10, Relaxed);
    start.with(|r| r.rax = 15).run().is(INT80, 0, CODE + 5)?;
    start.with(|r| r.rax = 21).run().is(BR, 0, CODE)
}

/// INTO after an overflow.
fn into() -> Verdict {
    // add eax, 1; into; int 0x80
    let start = start(&[0x83, 0xc0, 0x01, 0xce, 0xcd, 0x80]);
    start.with(|r| r.rax = 1).run().is(INT80, 0, CODE + 6)?;
    start.with(|r| r.rax = 0x7fff_ffff).run().is(OF, 0, CODE + 4)
}

/// SYSCALL is not delivered to the guest: #UD, whether the CPU knows it there or not.
fn syscall() -> Verdict {
    let trap = run(&[0x0f, 0x05]);
    trap.is(UD, 0, CODE)?;
    equal("selectors", trap.event.selectors.into(), SELECTORS.into())
}

/// SYSENTER neither: #GP, since its selector is null.
fn sysenter() -> Verdict {
    let trap = run(&[0x0f, 0x34]);
    let vector = trap.vector.unwrap_or(0);
    holds("vector", vector == GP || vector == UD)?;
    trap.is(vector, 0, CODE)
}
