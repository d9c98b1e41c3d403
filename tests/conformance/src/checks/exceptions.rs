//! Exceptions in either mode: vector, error code, RIP, what is saved, what the entry finds.

use super::{
    Group, Setting, check,
    page_faults::{Access::Write, kernel_access, user_access},
};
use crate::{
    abi,
    code::Code,
    counters::{Counters, counted},
    entry, kernel,
    paging::{self, A, D, NX, P, U, W},
    probe::Probe,
    registers::{Equal, Registers},
    tap::{Case, Verdict, equal, holds, skip},
    user::{self, Start},
};
use pv_abi::{
    event::{self, RFLAGS_FORCED, RFLAGS_IF},
    msr::{EVENT_ENTRY_SUPERVISOR, arch},
    pvcs::{flags, offset},
    selectors::USER_CS_SS,
};

pub const GROUP: Group = Group {
    name: "exception",
    setting: Setting::Anywhere,
    checks: &[
        check("user", "EVT-1 EVT-7 SEL-3", from_user),
        check("kernel", "EVT-2 EVT-7 SEL-3", from_kernel),
        check("user_context", "EVT-1 PVCS-4", user_context),
        check("kernel_context", "EVT-2 PVCS-4", kernel_context),
        check("kernel_interrupt_flag", "EVT-2 RET-5", kernel_interrupt_flag),
        check("entry_state", "EVT-11 EVT-1 EVT-2", entry_state),
        check("int_n", "SEL-3", int_n),
        check("icebp", "EVT-7", icebp),
        check("non_canonical_stack", "EVT-7", non_canonical_stack),
        check("cr2_is_for_page_faults", "EVT-8 PVCS-4", cr2_is_for_page_faults),
        check("jump_to_non_canonical", "EVT-7", jump_to_non_canonical),
        check("sse_exception", "EVT-7", sse_exception),
        check("alignment_check", "EVT-7", alignment_check),
        check("flags_behind_cmpxchg16b", "EVT-1 EVT-2 EVT-8", flags_behind_cmpxchg16b),
        check("sysenter", "EVT-6", sysenter),
        check("kernel_only_instructions", "INS-18", kernel_only_instructions),
    ],
};

const NON_CANONICAL: u64 = 0x0000_8000_0000_1000;

/// Code, RBX or RSP where they matter, and the exception: vector, error code, RIP past the start.
type Exception = (&'static str, Code, fn(&mut Registers), u8, u64, u64);

fn nothing(_: &mut Registers) {}

/// `$code` is the module of snippets: both modes have the same ones.
macro_rules! cases {
    ($code:path) => {{
        use $code as code;
        let length = |code: Code| code.end - code.start;
        let cases: [Exception; 11] = [
            ("divide error", code::divide(), nothing, event::DE, 0, 4),
            ("undefined opcode", code::undefined(), nothing, event::UD, 0, 0),
            ("INT3", code::int3(), nothing, event::BP, 0, 1),
            ("INT 4", code::int4(), nothing, event::OF, 0, 2),
            ("INT 0x80", code::int80(), nothing, event::INT80, 0, 2),
            ("INT 0", code::int0(), nothing, event::GP, 2, 0),
            ("non-canonical data", code::load(), |r| r.rbx = NON_CANONICAL, event::GP, 0, 0),
            ("a system selector", code::load_ds(), |r| r.rbx = 0x43, event::GP, 0x40, 0),
            ("a kernel selector", code::load_ds(), |r| r.rbx = 0x13, event::GP, 0x10, 0),
            ("beyond the GDT", code::load_ds(), |r| r.rbx = 0xfffb, event::GP, 0xfff8, 0),
            ("x87 error", code::x87_error(), nothing, event::MF, 0, length(code::x87_error()) - 1),
        ];
        cases
    }};
}

/// Each exception of user mode arrives as the manual says, at a cost of one exit.
fn from_user() -> Verdict {
    for (name, code, registers, vector, error, past) in cases!(user::code) {
        let start = Start::of(code).with(registers);
        start.run().is(vector, error, code.start + past).case(name)?;
        let seen = Counters::of(|| start.run());
        counted("exits", seen.exits, 1).case(name)?;
        counted("events", seen.events, 1).case(name)?;
    }
    Start::of(user::code::reset_x87()).run().is_syscall(user::code::reset_x87().end)
}

/// CMPXCHG16B leaves all flags but ZF alone. Behind it QEMU 7.2's emulator shows an operand of an earlier
/// instruction as RFLAGS. None of that is to come true for a guest, whether it hears of the exit or not.
fn flags_behind_cmpxchg16b() -> Verdict {
    /// CF, PF, AF, ZF, SF, OF.
    const ARITHMETIC: u64 = 0x8d5;
    /// CPUs set it in what a fault saves, emulators may not.
    const RF: u64 = 1 << 16;
    if abi::native_cpuid(1, 0)[2] & 1 << 13 == 0 {
        return skip("this CPU has no CMPXCHG16B");
    }
    let touched = paging::set_area(63, paging::frame(63) | P | W | U | A | D | NX);
    // DF; IOPL; TF, NT and VM; AC and ID; each with one that is always 0.
    for operand in [0x8000_0400, 0x8000_3000, 0x8002_4100, 0x8024_0000] {
        for target in [paging::area(64), NON_CANONICAL] {
            let fill = target != NON_CANONICAL;
            let prepare = |r: &mut Registers| (r.rbx, r.rsi, r.rdi) = (operand, touched, target);
            for user in [false, true] {
                // Whoever touches it comes to the hypervisor.
                paging::set_area(64, 0);
                paging::set_area(64, paging::frame(64) | P | W | U | A | D | NX);
                user_access(Write, touched);
                kernel_access(Write, touched);
                let found = if user {
                    let trap = Start::of(user::code::cmpxchg16b()).with(prepare).run();
                    equal("a system call", trap.vector.is_none().into(), fill.into())?;
                    if fill { trap.registers.rax } else { trap.event.rflags }
                } else {
                    let done = Probe::of(kernel::code::cmpxchg16b()).with(prepare).run();
                    equal("its end", done.event.is_none().into(), fill.into())?;
                    // The virtual IF is clear.
                    if fill { done.registers.rax } else { done.event().rflags | RFLAGS_IF }
                };
                equal("RFLAGS", found & !(ARITHMETIC | RF), RFLAGS_FORCED).case(if user {
                    "user mode"
                } else {
                    "supervisor mode"
                })?;
            }
        }
    }
    Ok(())
}

/// The same in supervisor mode, through the other entry.
fn from_kernel() -> Verdict {
    for (name, code, registers, vector, error, past) in cases!(kernel::code) {
        let probe = Probe::of(code).with(registers);
        probe.run().event().is(vector, error, code.start + past).case(name)?;
        let seen = Counters::of(|| probe.run());
        counted("exits", seen.exits, 1).case(name)?;
        counted("events", seen.events, 1).case(name)?;
    }
    Start::of(user::code::reset_x87()).run().is_syscall(user::code::reset_x87().end)
}

/// An event from user mode saves the whole context and leaves all other registers alone.
fn user_context() -> Verdict {
    let mut start = Start::of(user::code::undefined()).flags(0x24_0cd5);
    start.registers = Registers { rsp: 0x1234_5678, ..Registers::pattern() };
    start.gsbase = 0x7000_1000;
    let trap = start.run();
    trap.is(event::UD, 0, start.rip)?;
    trap.registers.equal(&start.registers)?;
    // CPUs set RF in what a fault saves, emulators may not.
    const RF: u64 = 1 << 16;
    equal("flags", trap.event.rflags & !RF, start.rflags)?;
    equal("selectors", trap.event.selectors.into(), USER_CS_SS.into())?;
    equal("GS base", trap.event.user_gsbase, start.gsbase)?;
    equal("event_flags", trap.event.flags, 0)
}

/// An event in supervisor mode saves RIP, flags, RCX and R11; what belongs to user mode stays.
fn kernel_context() -> Verdict {
    const GS: u64 = 0x7000_2000;
    let shared = abi::pvcs();
    shared.set_word(offset::USER_CS, 0x1111_2222);
    shared.set_word(offset::USER_GSBASE, 0x3333);
    abi::wrmsr(arch::GS_BASE, GS);
    let probe = Probe::of(kernel::code::undefined()).with(|r| {
        *r = Registers { rsp: r.rsp, ..Registers::pattern() };
    });
    let done = probe.run();
    let gs = abi::rdmsr(arch::GS_BASE);
    abi::wrmsr(arch::GS_BASE, 0);
    let event = done.event();
    event.is(event::UD, 0, kernel::code::undefined().start)?;
    equal("RCX", event.rcx, probe.registers.rcx)?;
    equal("R11", event.r11, probe.registers.r11)?;
    done.registers.equal(&probe.registers)?;
    equal("selectors", event.selectors.into(), 0x1111_2222)?;
    equal("user GS base", event.user_gsbase, 0x3333)?;
    equal("GS base", gs, GS)
}

/// The virtual flag is saved with RFLAGS and clear in the handler.
fn kernel_interrupt_flag() -> Verdict {
    let shared = abi::pvcs();
    for (on, saved) in [(false, 0), (true, RFLAGS_IF)] {
        if on {
            shared.enable_interrupts();
        }
        let event = Probe::of(kernel::code::undefined()).run().event();
        let after = shared.event_flags() & flags::IF;
        shared.disable_interrupts();
        equal("IF in the saved flags", event.rflags & RFLAGS_IF, saved)?;
        equal("IF in the handler", event.flags & flags::IF, 0)?;
        equal("IF after it", after, if on { flags::IF } else { 0 })?;
    }
    Ok(())
}

/// Every event enters with RCX == RIP, R11 == RFLAGS == 0x202; from user mode with the kernel's
/// GS base.
fn entry_state() -> Verdict {
    const KERNEL_GS: u64 = 0xffff_ec00_0000_3000;
    let entry = &raw const entry::event_entry as u64;
    abi::wrmsr(arch::KERNEL_GS_BASE, KERNEL_GS);
    let user = Start::of(user::code::undefined()).flags(0x24_0cd5).run().event.entered;
    let gs = abi::rdmsr(arch::GS_BASE);
    abi::wrmsr(arch::KERNEL_GS_BASE, 0);
    abi::wrmsr(arch::GS_BASE, 0);
    let kernel = Probe::of(kernel::code::undefined_with_flags()).run().event().entered;
    for (entered, rip) in [(user, entry), (kernel, entry + EVENT_ENTRY_SUPERVISOR)] {
        equal("RCX at entry", entered.rcx, rip)?;
        equal("R11 at entry", entered.r11, RFLAGS_FORCED)?;
        equal("RFLAGS at entry", entered.rflags, RFLAGS_FORCED)?;
    }
    equal("GS base at entry", gs, KERNEL_GS)
}

/// INT of any other vector: #GP whose error code names the IDT entry. Some emulators count the
/// 16 bytes of an entry as two.
fn int_n() -> Verdict {
    let user = Start::of(user::code::int21()).run().event;
    let kernel = Probe::of(kernel::code::int21()).run().event();
    for (event, code) in [(user, user::code::int21()), (kernel, kernel::code::int21())] {
        event.is(event::GP, event.error, code.start)?;
        holds("error code", [0x21 << 3 | 2, 0x21 << 4 | 2].contains(&event.error))?;
    }
    Ok(())
}

/// ICEBP is a #DB behind the instruction, or #UD on emulators without it.
fn icebp() -> Verdict {
    let user = Start::of(user::code::icebp()).run().event;
    let kernel = Probe::of(kernel::code::icebp()).run().event();
    for (event, code) in [(user, user::code::icebp()), (kernel, kernel::code::icebp())] {
        match event.vector() {
            event::UD => event.is(event::UD, 0, code.start)?,
            _ => event.is(event::DB, 0, code.end)?,
        }
    }
    Ok(())
}

/// #SS for a non-canonical address relative to RBP, or #GP on emulators that do not tell.
fn non_canonical_stack() -> Verdict {
    let user = Start::of(user::code::load_stack()).with(|r| r.rbp = NON_CANONICAL).run().event;
    let kernel = Probe::of(kernel::code::load_stack()).with(|r| r.rbp = NON_CANONICAL);
    let kernel = kernel.run().event();
    for (event, code) in [(user, user::code::load_stack()), (kernel, kernel::code::load_stack())] {
        let vector = if event.vector() == event::GP { event::GP } else { event::SS };
        event.is(vector, 0, code.start)?;
    }
    Ok(())
}

/// Other events leave CR2 alone.
fn cr2_is_for_page_faults() -> Verdict {
    abi::pvcs().set_word(offset::CR2, 0x1234);
    let user = Start::of(user::code::undefined()).run().event;
    let kernel = Probe::of(kernel::code::undefined()).run().event();
    equal("CR2 after an event in user mode", user.cr2, 0x1234)?;
    equal("CR2 after an event in supervisor mode", kernel.cr2, 0x1234)
}

/// #GP; CPUs differ in whether RIP is the jump's or its target.
fn jump_to_non_canonical() -> Verdict {
    let user = Start::of(user::code::jump()).with(|r| r.rbx = NON_CANONICAL).run().event;
    let kernel = Probe::of(kernel::code::jump()).with(|r| r.rbx = NON_CANONICAL).run().event();
    for (event, jump) in [(user, user::code::jump()), (kernel, kernel::code::jump())] {
        equal("vector", event.vector().into(), event::GP.into())?;
        equal("error code", event.error, 0)?;
        holds("RIP is the jump's or its target", [jump.start, NON_CANONICAL].contains(&event.rip))?;
    }
    Ok(())
}

/// #XM, on CPUs that raise it.
fn sse_exception() -> Verdict {
    let code = user::code::sse_error();
    let trap = Start::of(code).run();
    Start::of(user::code::reset_x87()).run();
    match trap.vector {
        None => skip("this CPU raises no SSE exceptions"),
        Some(_) => equal("vector", trap.event.vector().into(), event::XM.into()),
    }
}

/// #AC in user mode, on CPUs that raise it.
fn alignment_check() -> Verdict {
    let start = Start::of(user::code::load()).flags(1 << 18);
    let trap = start.with(|r| r.rbx = user::stack_top() - 15).run();
    match trap.vector {
        None => skip("this CPU does not check alignment"),
        Some(_) => trap.is(event::AC, 0, start.rip),
    }
}

/// SYSENTER has nowhere to go: #GP, or #UD on CPUs that know it in 32-bit mode only.
fn sysenter() -> Verdict {
    let code = user::code::sysenter();
    let trap = Start::of(code).run();
    let vector = trap.vector.unwrap_or(0);
    holds("vector", vector == event::GP || vector == event::UD)?;
    trap.is(vector, 0, code.start)
}

/// Instructions of the kernel's that are not even emulated for it: #GP, in both modes.
fn kernel_only_instructions() -> Verdict {
    for (name, user, kernel) in [
        ("SWAPGS", user::code::swapgs(), kernel::code::swapgs()),
        ("SYSRET", user::code::sysret(), kernel::code::sysret()),
        ("RDPMC", user::code::rdpmc(), kernel::code::rdpmc()),
    ] {
        Start::of(user).run().is(event::GP, 0, user.start).case(name)?;
        Probe::of(kernel).run().event().is(event::GP, 0, kernel.start).case(name)?;
    }
    Ok(())
}
