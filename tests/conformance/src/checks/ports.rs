//! IN and OUT in every size and form.

use super::{Group, Setting, check};
use crate::{
    code::Code,
    counters::{self, Counters, Exit},
    privileged::kernel::code,
    probe::Probe,
    registers::{Equal, Registers},
    tap::{Case, Verdict, equal},
};
use suite::native::uart::UART;

pub const GROUP: Group = Group {
    name: "ports",
    setting: Setting::Anywhere,
    checks: &[
        check("byte", "INS-5 DEV-2", byte),
        check("sizes", "INS-5 DEV-3", sizes),
        check("immediate", "INS-5 DEV-3", immediate),
        check("registers", "INS-5", registers),
        check("cost", "CNT-2", cost),
        check("strings", "INS-5 INS-18", strings),
    ],
};

/// The UART's scratch register.
const SCRATCH: u64 = UART as u64 + 7;
/// Nobody's port.
const NOBODY: u64 = 0x1234;
const RAX: u64 = 0x1122_3344_5566_7788;

fn run(code: Code, port: u64, rax: u64) -> u64 {
    Probe::of(code).with(|r| (r.rdx, r.rax) = (0xdead_0000 | port, rax)).run().registers.rax
}

/// A byte goes out and comes back; the rest of RAX stays.
fn byte() -> Verdict {
    for value in [0, 0x5a, 0xa5, 0xff] {
        run(code::out_al(), SCRATCH, RAX & !0xff | value);
        equal("RAX", run(code::in_al(), SCRATCH, RAX), RAX & !0xff | value)?;
    }
    Ok(())
}

/// Nobody answers with ones; a 32-bit result clears the upper half, smaller ones keep the rest.
/// A port that only knows bytes is nobody to larger accesses.
fn sizes() -> Verdict {
    for port in [NOBODY, SCRATCH] {
        equal("16 bits", run(code::in_ax(), port, RAX), RAX | 0xffff)?;
        equal("32 bits", run(code::in_eax(), port, RAX), 0xffff_ffff)?;
    }
    equal("8 bits", run(code::in_al(), NOBODY, RAX), RAX | 0xff)?;
    run(code::out_al(), SCRATCH, 0x77);
    run(code::out_ax(), SCRATCH, 0);
    run(code::out_eax(), SCRATCH, 0);
    equal("the scratch register", run(code::in_al(), SCRATCH, 0), 0x77)
}

/// The forms with the port in the instruction.
fn immediate() -> Verdict {
    equal("8 bits", run(code::in_al_imm(), 0, RAX), RAX | 0xff)?;
    equal("16 bits", run(code::in_ax_imm(), 0, RAX), RAX | 0xffff)?;
    equal("32 bits", run(code::in_eax_imm(), 0, RAX), 0xffff_ffff)?;
    for code in [code::out_al_imm(), code::out_ax_imm(), code::out_eax_imm()] {
        equal("RAX", run(code, 0, RAX), RAX)?;
    }
    Ok(())
}

/// Nothing but RAX changes.
fn registers() -> Verdict {
    for code in [code::in_al(), code::in_eax(), code::out_al(), code::out_eax()] {
        let probe = Probe::of(code).with(|r| {
            *r = Registers { rsp: r.rsp, rdx: NOBODY, ..Registers::pattern() };
        });
        let done = probe.run();
        done.finished()?;
        done.registers.equal(&Registers { rax: done.registers.rax, ..probe.registers })?;
    }
    Ok(())
}

/// One exit each.
fn cost() -> Verdict {
    counters::needed()?;
    for code in [code::in_al(), code::in_eax_imm(), code::out_al(), code::out_ax_imm()] {
        let seen = Counters::of(|| run(code, SCRATCH, 0));
        seen.exactly(&[(Exit::Emulated, 1)])?;
    }
    Ok(())
}

/// String forms are not emulated: #GP.
fn strings() -> Verdict {
    for (name, code) in [("INS", code::ins()), ("OUTS", code::outs())] {
        let event = Probe::of(code).with(|r| r.rdx = SCRATCH).run().event();
        event.is(pv_abi::event::GP, 0, code.start).case(name)?;
    }
    Ok(())
}
