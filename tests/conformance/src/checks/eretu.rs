//! ERETU: the way to user mode, direct and through L1, and everything it must make harmless.

use super::{Group, Setting, check};
use crate::{
    abi,
    counters::{Counters, Exit, counted, counted_within},
    registers::{Equal, Registers},
    tap::{Case, Verdict, equal, holds},
    user::{self, Start, code},
};
use pv_abi::{
    event::{GP, PF, RFLAGS_FORCED, UD, pf},
    msr::arch,
    selectors::USER_CS_SS,
};

pub const GROUP: Group = Group {
    name: "eretu",
    setting: Setting::Anywhere,
    checks: &[
        check("flags", "RET-2", flags),
        check("rcx_and_r11", "RET-1", rcx_and_r11),
        check("gs_base", "RET-1", gs_base),
        check("stack_pointer", "RET-1 EVT-1 EVT-5", stack_pointer),
        check("rpl_is_forced", "RET-1 CNT-3", rpl_is_forced),
        check("bad_code_selectors", "RET-4", bad_code_selectors),
        check("bad_stack_selectors", "RET-4", bad_stack_selectors),
        check("bad_rip", "RET-4", bad_rip),
        check("unmapped_rip", "RET-1 MMU-1", unmapped_rip),
        check("only_at_its_address", "RET-1 HC-1", only_at_its_address),
    ],
};

/// Changes a start so that it is carried out in the named way.
type Way = (&'static str, fn(Start) -> Start);

/// The ways to user mode: by SYSRET and by IRET without L1, and through L1 because of a selector
/// that says the same but not in the same bits.
const WAYS: [Way; 3] = [
    ("by SYSRET", Start::by_sysret),
    ("by IRET", |start| start),
    ("through L1", |start| Start { selectors: 0x0028_0030, ..start }),
];

/// What user mode sees of PVCS.eflags: IF on, IOPL, VM, VIF, VIP off, the rest as given.
fn flags() -> Verdict {
    const KEPT: u64 = 0x24_4cd5;
    for (name, way) in WAYS {
        for (given, seen) in [
            (0, 0x202),
            (RFLAGS_FORCED, 0x202),
            (0x3000, 0x202),
            (1 << 17, 0x202),
            (3 << 19, 0x202),
            (1 << 3 | 1 << 5 | 1 << 15, 0x202),
            (KEPT, KEPT | 0x202),
            (0xffff_fffe_ffff_feff, KEPT | 0x202),
        ] {
            let trap = way(Start { rflags: given, ..Start::of(code::flags()) }).run();
            trap.is_syscall(code::flags().end).case(name)?;
            equal("flags in user mode", trap.registers.rax, seen).case(name)?;
            equal("flags after SYSCALL", trap.event.r11, seen).case(name)?;
        }
    }
    Ok(())
}

/// RCX and R11 come from the PVCS, whatever the way; every other register is left alone.
fn rcx_and_r11() -> Verdict {
    for (name, way) in WAYS {
        let mut start = Start::of(code::undefined());
        start.registers = Registers { rsp: start.registers.rsp, ..Registers::pattern() };
        let start = way(start);
        let trap = start.run();
        trap.is(UD, 0, start.rip).case(name)?;
        trap.registers.equal(&start.registers).case(name)?;
    }
    Ok(())
}

/// The GS base is sign-extended from bit 47 before it is loaded.
fn gs_base() -> Verdict {
    for (name, way) in WAYS {
        for (given, loaded) in [
            (0x7fff_ffff_f000, 0x7fff_ffff_f000),
            (0x0000_8000_0000_0000, 0xffff_8000_0000_0000),
            (0x1234_0000_0000_1000, 0x1000),
            (u64::MAX >> 1, u64::MAX),
        ] {
            let trap = way(Start { gsbase: given, ..Start::of(code::syscall()) }).run();
            equal("GS base of user mode", trap.event.user_gsbase, loaded).case(name)?;
        }
        equal("GS base of supervisor mode", abi::rdmsr(arch::GS_BASE), 0)?;
    }
    Ok(())
}

/// RSP is the user's business, both ways, even if it is no address at all.
fn stack_pointer() -> Verdict {
    for (name, way) in WAYS {
        for rsp in [0, 1, 1 << 47, 0x8000_0000_0000_0000, u64::MAX, 0xffff_8080_0000_7000] {
            for (code, event) in [(code::syscall(), false), (code::undefined(), true)] {
                let trap = way(Start::of(code).with(|r| r.rsp = rsp)).run();
                holds("came back as it should", trap.vector.is_some() == event).case(name)?;
                equal("RSP", trap.registers.rsp, rsp).case(name)?;
            }
        }
    }
    Ok(())
}

/// The selectors' RPL is 3 whatever the PVCS says. That costs an exit, the plain way none.
fn rpl_is_forced() -> Verdict {
    for selectors in [0x0028_0030, 0x0029_0031, 0x002a_0032, 0x002b_0030] {
        let start = Start { selectors, ..Start::of(code::syscall()) };
        let (trap, seen) = Counters::with(|| start.run());
        trap.is_syscall(code::syscall().end)?;
        equal("selectors", trap.event.selectors.into(), USER_CS_SS.into())?;
        seen.exactly(&[(Exit::Eretu, 1)])?;
        counted("direct switches", seen.direct_switches, 1)?;
    }
    Ok(())
}

/// Judges that selectors are refused: #GP in user mode, at the address that was to be next.
fn refused(selectors: u32) -> Verdict {
    const KERNEL_GS: u64 = 0xffff_ec00_0000_5000;
    let mut start = Start { selectors, gsbase: 0x6000, ..Start::of(code::syscall()) };
    start.registers = Registers { rsp: user::stack_top() - 64, ..Registers::pattern() };
    abi::wrmsr(arch::KERNEL_GS_BASE, KERNEL_GS);
    let trap = start.run();
    let gs = abi::rdmsr(arch::GS_BASE);
    abi::wrmsr(arch::KERNEL_GS_BASE, 0);
    abi::wrmsr(arch::GS_BASE, 0);
    trap.is(GP, trap.event.error, start.rip)?;
    holds(
        "error code",
        [0, u64::from(selectors & 0xfffc), u64::from(selectors >> 16 & 0xfffc)]
            .contains(&trap.event.error),
    )?;
    trap.registers.equal(&start.registers)?;
    equal("selectors", trap.event.selectors.into(), (selectors | 0x0003_0003).into())?;
    equal("flags", trap.event.rflags, RFLAGS_FORCED)?;
    equal("user GS base", trap.event.user_gsbase, 0x6000)?;
    equal("GS base at the entry", gs, KERNEL_GS)
}

/// A code selector that is none is a #GP of the guest's.
fn bad_code_selectors() -> Verdict {
    for (name, selector) in [
        ("null", 0),
        ("L1's code", 0x0b),
        ("L1's data", 0x13),
        ("user data", 0x2b),
        ("no descriptor", 0x1b),
        ("the TSS", 0x43),
        ("the vCPU number", 0x83),
        ("beyond the table", 0xfffb),
        ("the local table", 0x0f),
    ] {
        refused(0x002b_0000 | selector).case(name)?;
    }
    let seen = Counters::of(|| {
        Start { selectors: 0x002b_0000, ..Start::of(code::syscall()) }.run();
    });
    seen.exactly(&[(Exit::Eretu, 1), (Exit::FailedEntry, 1)])
}

/// Nor may the stack's be anything but writable data.
fn bad_stack_selectors() -> Verdict {
    for (name, selector) in [
        ("null", 0),
        ("user code", 0x33),
        ("L1's data", 0x13),
        ("the TSS", 0x43),
        ("read-only data", 0x83),
        ("no descriptor", 0x63),
    ] {
        refused(selector << 16 | 0x33).case(name)?;
    }
    Ok(())
}

/// A RIP that no CPU takes is a #GP in user mode, with that RIP.
fn bad_rip() -> Verdict {
    for (name, way) in WAYS {
        for rip in [1 << 47, 0xffff_7fff_ffff_ffff, 0x8000_0000_0000_0000, 0x1234_0000_0000_0000] {
            let start = way(Start::at(rip));
            let (trap, seen) = Counters::with(|| start.run());
            trap.is(GP, 0, rip).case(name)?;
            equal("RSP", trap.registers.rsp, start.registers.rsp).case(name)?;
            let own = seen.count(Exit::FailedEntry).zip(seen.count(Exit::GeneralProtection));
            counted("exits for it", own.map(|(one, other)| one + other), 1).case(name)?;
            counted_within("all exits", seen.exits, 1, 2).case(name)?;
        }
    }
    Ok(())
}

/// A canonical RIP without a page, at the edge of the lower half or among L1's addresses, is a
/// page fault.
fn unmapped_rip() -> Verdict {
    for (name, way) in WAYS {
        for rip in [
            0,
            0x7fff_ffff_f000,
            0x7fff_ffff_ffff,
            0xffff_8000_0000_0000,
            0xffff_8080_0000_0000,
            u64::MAX,
        ] {
            let trap = way(Start::at(rip)).run();
            trap.is(PF, pf::USER | pf::FETCH, rip).case(name)?;
            equal("CR2", trap.event.cr2, rip).case(name)?;
        }
    }
    Ok(())
}

/// SYSCALL anywhere else in supervisor mode is no ERETU, even with the PVCS filled.
fn only_at_its_address() -> Verdict {
    abi::pvcs().prepare_return(USER_CS_SS, code::syscall().start, RFLAGS_FORCED, [0; 2]);
    let result = abi::call(0, [0; 4]);
    equal("a hypercall", result, pv_abi::hypercall::ENOSYS)
}
