//! System calls of user mode and the plain way back.

use super::{Group, Setting, check};
use crate::{
    abi,
    counters::{self, Counters, Exit, counted},
    entry,
    registers::{Equal, Registers},
    tap::{Verdict, equal},
    user::{Start, code},
};
use pv_abi::{
    event::RFLAGS_FORCED,
    msr::arch,
    pvcs::{offset, vector},
    selectors::USER_CS_SS,
};

pub const GROUP: Group = Group {
    name: "syscall",
    setting: Setting::Anywhere,
    checks: &[
        check("registers", "EVT-5", registers),
        check("entry_state", "EVT-11 EVT-5", entry_state),
        check("saved_context", "EVT-5", saved_context),
        check("leaves_event_fields", "EVT-5", leaves_event_fields),
        check("direct", "CNT-3", direct),
    ],
};

/// SYSCALL carries every register in, and ERETU carried every register out.
fn registers() -> Verdict {
    for sysret in [false, true] {
        let mut start = Start::of(code::syscall())
            .with(|r| *r = Registers { rsp: r.rsp, ..Registers::pattern() });
        if sysret {
            start = start.by_sysret();
        }
        let trap = start.run();
        trap.is_syscall(code::syscall().end)?;
        let expected = Registers { rcx: code::syscall().end, r11: start.rflags, ..start.registers };
        trap.registers.equal(&expected)?;
    }
    Ok(())
}

/// The kernel's entry: RIP == RCX == LSTAR, R11 == RFLAGS == 0x202, GS base the kernel's.
fn entry_state() -> Verdict {
    const KERNEL_GS: u64 = 0xffff_ec00_1234_5000;
    const ARITHMETIC: u64 = 0x8d5;
    abi::wrmsr(arch::KERNEL_GS_BASE, KERNEL_GS);
    let mut start = Start::of(code::syscall()).flags(ARITHMETIC);
    start.gsbase = 0x7000_1000;
    let trap = start.run();
    let gs = abi::rdmsr(arch::GS_BASE);
    abi::wrmsr(arch::KERNEL_GS_BASE, 0);
    abi::wrmsr(arch::GS_BASE, 0);
    trap.is_syscall(code::syscall().end)?;
    equal("RCX at entry", trap.event.entered.rcx, &raw const entry::syscall_entry as u64)?;
    equal("R11 at entry", trap.event.entered.r11, RFLAGS_FORCED)?;
    equal("RFLAGS at entry", trap.event.entered.rflags, RFLAGS_FORCED)?;
    equal("GS base at entry", gs, KERNEL_GS)
}

/// The PVCS holds the user's context: RIP and RCX the return address, R11 the flags.
fn saved_context() -> Verdict {
    let mut start = Start::of(code::syscall()).flags(0x8d5);
    start.gsbase = 0x7000_1000;
    let event = start.run().event;
    let end = code::syscall().end;
    equal("RIP", event.rip, end)?;
    equal("RCX", event.rcx, end)?;
    equal("R11", event.r11, start.rflags)?;
    equal("flags", event.rflags, start.rflags)?;
    equal("GS base", event.user_gsbase, start.gsbase)?;
    equal("selectors", event.selectors.into(), USER_CS_SS.into())
}

/// ERETU sets STD; SYSCALL leaves it, the error code and CR2 alone.
fn leaves_event_fields() -> Verdict {
    let shared = abi::pvcs();
    shared.set_error_code(0x5a5a);
    shared.set_word(offset::CR2, 0x1234_5678);
    let event = Start::of(code::syscall()).run().event;
    equal("vector word", event.word.into(), vector::STANDARD.into())?;
    equal("error code", event.error, 0x5a5a)?;
    equal("CR2", event.cr2, 0x1234_5678)
}

/// A system call and its return never enter L1.
fn direct() -> Verdict {
    counters::needed()?;
    const ROUNDS: u64 = 1000;
    let run = || {
        for _ in 0..ROUNDS {
            Start::of(code::syscall()).run();
        }
    };
    let seen = Counters::of(run);
    seen.exactly(&[(Exit::PageFaultFilled, 0)])?;
    counted("direct switches", seen.direct_switches, 2 * ROUNDS)
}
