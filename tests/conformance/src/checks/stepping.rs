//! The trap flag in both modes.

use super::{Group, Setting, check, debug};
use crate::{
    abi::tsc,
    clock,
    code::Code,
    counters::{Counters, Exit},
    kernel,
    paging::{self, D, NX, P, U, W},
    probe::Probe,
    tap::{Case, Verdict, equal, holds},
    timer,
    user::{Start, code},
};
use pv_abi::event::{DB, RFLAGS_FORCED, RFLAGS_TF, UD};

pub const GROUP: Group = Group {
    name: "stepping",
    setting: Setting::Anywhere,
    checks: &[
        check("user", "EVT-1 RET-2", user),
        check("user_goes_on", "RET-2", user_goes_on),
        check("kernel", "EVT-2", kernel),
        check("over_a_system_call", "EVT-5", over_a_system_call),
        check("over_a_fill", "EVT-8", over_a_fill),
        check("over_a_hypercall", "HC-1", over_a_hypercall),
        check("over_emulated_instructions", "INS-2", over_emulated_instructions),
        check("over_hlt", "INS-2 INS-12", over_hlt),
        check("over_a_device_access", "INS-2", over_a_device_access),
    ],
};

/// DR6.BS.
const STEP: u64 = 1 << 14;

/// One instruction of user mode, then #DB behind it, with BS in DR6. The entry's TF is clear.
fn user() -> Verdict {
    let start = Start::of(code::nops()).flags(RFLAGS_TF);
    for start in [start, start.by_sysret()] {
        debug::write(6, 0);
        let trap = start.run();
        trap.is(DB, 0, start.rip + 1)?;
        equal("saved flags", trap.event.rflags, start.rflags)?;
        equal("RFLAGS at entry", trap.event.entered.rflags, RFLAGS_FORCED)?;
        equal("DR6", debug::read(6), debug::DR6_RESET | STEP)?;
    }
    debug::write(6, 0);
    let seen = Counters::of(|| start.run());
    seen.exactly(&[(Exit::OtherException, 1)])
}

/// Going on from each #DB walks through the code, and without TF to its end.
fn user_goes_on() -> Verdict {
    let start = Start::of(code::nops()).flags(RFLAGS_TF);
    for past in 0..4 {
        let rip = start.rip + past;
        Start { rip, ..start }.run().is(DB, 0, rip + 1)?;
    }
    Start { rflags: RFLAGS_FORCED, ..start }.run().is(UD, 0, code::nops().end)
}

/// Judges that stepping stops in `code` after the instructions that set TF and `past` bytes more.
fn stops(
    code: Code,
    past: u64,
    registers: impl FnOnce(&mut crate::registers::Registers),
) -> Verdict {
    /// PUSH imm32 and POPFQ.
    const PROLOGUE: u64 = 6;
    debug::write(6, 0);
    let event = Probe::of(code).with(registers).run().event();
    event.is(DB, 0, code.start + PROLOGUE + past)?;
    equal("TF in the saved flags", event.rflags & RFLAGS_TF, RFLAGS_TF)?;
    equal("RFLAGS at entry", event.entered.rflags, RFLAGS_FORCED)?;
    equal("DR6", debug::read(6), debug::DR6_RESET | STEP)
}

/// The same in supervisor mode, where POPF sets TF.
fn kernel() -> Verdict {
    stops(kernel::code::step_nop(), 1, |_| ())
}

/// SYSCALL hides TF from the kernel and hands it over in R11.
fn over_a_system_call() -> Verdict {
    let start = Start::of(code::syscall()).flags(RFLAGS_TF);
    let trap = start.run();
    trap.is_syscall(code::syscall().end)?;
    equal("R11", trap.event.r11, start.rflags)?;
    equal("saved flags", trap.event.rflags, start.rflags)?;
    equal("RFLAGS at entry", trap.event.entered.rflags, RFLAGS_FORCED)
}

/// A fault that only L1 sees does not count as a step.
fn over_a_fill() -> Verdict {
    let address = paging::set_area(0, paging::frame(0) | P | W | U | D | NX);
    let start = Start::of(code::load()).with(|r| r.rbx = address).flags(RFLAGS_TF);
    let (trap, seen) = Counters::with(|| start.run());
    trap.is(DB, 0, start.rip + 3)?;
    seen.exactly(&[(Exit::PageFaultFilled, 1), (Exit::OtherException, 1)])
}

/// The #DB of a hypercall comes behind it or behind the next instruction.
fn over_a_hypercall() -> Verdict {
    let code = kernel::code::step_hypercall();
    let event = Probe::of(code).run().event();
    equal("vector", event.vector().into(), DB.into())?;
    let after = code.start + 6 + 2;
    holds("RIP", event.rip == after || event.rip == after + 1)
}

/// An instruction that L1 carries out is one step like any other.
fn over_emulated_instructions() -> Verdict {
    for (name, code, length) in [
        ("IN", kernel::code::step_in(), 2),
        ("RDMSR", kernel::code::step_rdmsr(), 2),
        ("WRMSR", kernel::code::step_wrmsr(), 2),
        ("synthetic CPUID", kernel::code::step_cpuid(), 10),
        ("MOV from CR0", kernel::code::step_cr0(), 3),
        ("CLI", kernel::code::step_cli(), 1),
    ] {
        stops(code, length, |r| (r.rcx, r.rdx) = (0xc000_0083, 0)).case(name)?;
    }
    Ok(())
}

/// HLT does not wait for another interrupt than its own #DB.
fn over_hlt() -> Verdict {
    const MICROSECONDS: u64 = 100_000;
    let (verdict, elapsed) = timer::armed(MICROSECONDS, || {
        let start = tsc();
        (stops(kernel::code::step_hlt(), 1, |_| ()), tsc() - start)
    });
    verdict?;
    holds("it did not wait", elapsed < clock::microseconds(MICROSECONDS))
}

/// So is an access to a device.
fn over_a_device_access() -> Verdict {
    let address = paging::set_area(0, 0xfec0_0000 | P | W | U | D | NX);
    stops(kernel::code::step_load(), 2, |r| r.rbx = address)?;
    let start = Start::of(code::load_32()).with(|r| r.rbx = address).flags(RFLAGS_TF);
    start.run().is(DB, 0, start.rip + 2)
}
