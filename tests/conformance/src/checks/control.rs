//! Control registers and other privileged instructions of supervisor mode, and all of them in
//! user mode.

use super::{Group, Setting, check};
use crate::{
    abi::{self, pvcs},
    code::Code,
    counters::{self, Counters, Exit, counted},
    paging::{self, A, D, P, W},
    privileged::{kernel::code, user},
    probe::{Done, Probe},
    registers::{Equal, Registers},
    tap::{Case, Verdict, Wrong, equal, holds, skip},
    user::{Start, stack_top},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    event::{GP, UD},
    msr::{arch, x2apic},
    pvcs::offset,
};

pub const GROUP: Group = Group {
    name: "control",
    setting: Setting::Anywhere,
    checks: &[
        check("cr0", "INS-6", cr0),
        check("clts_and_lmsw", "INS-13", clts_and_lmsw),
        check("cr2", "INS-9", cr2),
        check("cr3", "INS-7 MMU-7", cr3),
        check("cr4", "INS-6", cr4),
        check("cr8", "INS-8", cr8),
        check("registers", "INS-6 INS-9 INS-13 INS-14 INS-16", registers),
        check("cost", "CNT-2", cost),
        check("invlpg", "INS-14 MMU-6", invlpg),
        check("invpcid", "INS-14", invpcid),
        check("caches", "INS-16", caches),
        check("tables_are_ignored", "INS-16", tables_are_ignored),
        check("xsetbv", "INS-15", xsetbv),
        check("fsgsbase", "INS-3 INS-19 MSR-26 MSR-27", fsgsbase),
        check("descriptor_tables", "INS-13 INS-17", descriptor_tables),
        check("user_mode", "INS-1 SEL-4", user_mode),
    ],
};

fn run(code: Code, rax: u64) -> Done {
    Probe::of(code).with(|r| r.rax = rax).run()
}

fn read(code: Code) -> u64 {
    run(code, 0).registers.rax
}

/// CR0 reads back as written, but paging, protection and write protection stay on.
fn cr0() -> Verdict {
    const START: u64 = 0x8005_0033;
    const FIXED: u64 = 0x8001_0011;
    equal("at start", read(code::read_cr0()), START)?;
    run(code::write_cr0(), START | 8).finished()?;
    let with_ts = read(code::read_cr0());
    run(code::write_cr0(), 0).finished()?;
    let least = read(code::read_cr0());
    run(code::write_cr0(), START).finished()?;
    equal("with TS", with_ts, START | 8)?;
    equal("least", least, FIXED)?;
    equal("at the end", read(code::read_cr0()), START)
}

/// CLTS clears TS; LMSW writes the four lowest bits and cannot clear PE.
fn clts_and_lmsw() -> Verdict {
    let start = read(code::read_cr0());
    run(code::write_cr0(), start | 8).finished()?;
    run(code::clts(), 0).finished()?;
    let cleared = read(code::read_cr0());
    run(code::lmsw(), 0xffff).finished()?;
    let all = read(code::read_cr0());
    run(code::lmsw(), 0).finished()?;
    let none = read(code::read_cr0());
    paging::word(paging::frame(0)).store(0xa, Relaxed);
    Probe::of(code::lmsw_memory()).with(|r| r.rbx = paging::frame(0)).run().finished()?;
    let memory = read(code::read_cr0());
    run(code::write_cr0(), start).finished()?;
    equal("after CLTS", cleared, start)?;
    equal("LMSW of all ones", all, start | 0xf)?;
    equal("LMSW of 0", none, start & !0xf | 1)?;
    equal("LMSW from memory", memory, start & !0xf | 0xb)
}

/// CR2 is the PVCS's.
fn cr2() -> Verdict {
    run(code::write_cr2(), 0x1234_5678_9abc).finished()?;
    equal("PVCS.cr2", pvcs().word(offset::CR2), 0x1234_5678_9abc)?;
    pvcs().set_word(offset::CR2, 0x77);
    equal("CR2", read(code::read_cr2()), 0x77)
}

/// MOV to CR3 loads an address space, with and without the no-flush bit.
fn cr3() -> Verdict {
    for space in 0..2 {
        paging::word(paging::frame(space)).store(0x1000 + space as u64, Relaxed);
        paging::area_entry(space, 0).store(paging::frame(space) | P | W | A | D, Relaxed);
    }
    for (space, bits) in [(1, 0), (0, 0), (1, 1 << 63), (0, 1 << 63 | 0x123), (0, 5)] {
        run(code::write_cr3(), paging::cr3(space) | bits).finished()?;
        equal("CR3 with its PCID", read(code::read_cr3()), paging::cr3(space) | bits & 0xfff)?;
        let load = Probe::of(crate::kernel::code::load()).with(|r| r.rbx = paging::AREA).run();
        equal("what is at the address", load.registers.rax, 0x1000 + space as u64)?;
    }
    run(code::write_cr3(), 1 << 36).finished()?;
    equal("CR3 after a bad value", read(code::read_cr3()), paging::cr3(0) | 5)
}

/// CR4 reads back, PAE stays on; FSGSBASE and OSXSAVE are shown as the CPU has them.
fn cr4() -> Verdict {
    const PAE: u64 = 1 << 5;
    let start = read(code::read_cr4());
    let fsgsbase = u64::from(abi::native_cpuid(7, 0)[1] & 1);
    let osxsave = u64::from(abi::native_cpuid(1, 0)[2] >> 27 & 1);
    equal("PAE and SSE", start & 0x620, 0x620)?;
    equal("FSGSBASE", start >> 16 & 1, fsgsbase)?;
    equal("OSXSAVE", start >> 18 & 1, osxsave)?;
    run(code::write_cr4(), start | 1 << 17).finished()?;
    let pcide = read(code::read_cr4());
    run(code::write_cr4(), 0).finished()?;
    let least = read(code::read_cr4());
    run(code::write_cr4(), start).finished()?;
    equal("with PCIDE", pcide, start | 1 << 17)?;
    equal("PAE", least & PAE, PAE)
}

/// CR8 is the upper half of the task priority.
fn cr8() -> Verdict {
    run(code::write_cr8(), 5).finished()?;
    let priority = abi::rdmsr(x2apic::TPR);
    abi::wrmsr(x2apic::TPR, 0x7f);
    let read = read(code::read_cr8());
    abi::wrmsr(x2apic::TPR, 0);
    let event = run(code::write_cr8(), 0x10).event();
    equal("TPR", priority, 0x50)?;
    equal("CR8", read, 7)?;
    event.is(GP, 0, code::write_cr8().start)
}

/// Emulated instructions change what they are to change and nothing else.
fn registers() -> Verdict {
    for code in [code::read_cr0(), code::write_cr2(), code::clts(), code::invlpg(), code::wbinvd()]
    {
        let probe = Probe::of(code).with(|r| {
            *r = Registers { rsp: r.rsp, ..Registers::pattern() };
        });
        let done = probe.run();
        done.finished()?;
        done.registers.equal(&Registers { rax: done.registers.rax, ..probe.registers })?;
        equal("RFLAGS", done.rflags, 0x202)?;
    }
    Ok(())
}

/// One exit each.
fn cost() -> Verdict {
    counters::needed()?;
    for code in [code::read_cr0(), code::read_cr3(), code::clts(), code::lgdt()] {
        let seen = Counters::of(|| Probe::of(code).with(|r| r.rbx = paging::frame(0)).run());
        seen.exactly(&[(Exit::Emulated, 1)])?;
    }
    Ok(())
}

/// INVLPG finds its address in every form of operand: an entry that was taken away is gone.
fn invlpg() -> Verdict {
    let gone = |code: Code, registers: fn(&mut Registers)| {
        let address = paging::set_area(0, paging::frame(0) | P | W | A | D);
        let load = Probe::of(crate::kernel::code::load()).with(|r| r.rbx = address);
        load.run().finished()?;
        paging::area_entry(0, 0).store(0, Relaxed);
        Probe::of(code).with(registers).run().finished()?;
        load.run().event().is(pv_abi::event::PF, 0, crate::kernel::code::load().start)
    };
    gone(code::invlpg(), |r| r.rbx = paging::AREA + 0xfff).case("[base]")?;
    gone(code::invlpg_indexed(), |r| (r.rbx, r.rcx) = (paging::AREA - 0x140, 8)).case("indexed")?;
    gone(code::invlpg_32(), |r| r.rbx = 0xdead_0000_0000_0000 | paging::AREA).case("32-bit")?;
    abi::wrmsr(arch::GS_BASE, paging::AREA - 0x1000);
    let verdict = gone(code::invlpg_gs(), |r| r.rbx = 0x1000).case("GS-relative");
    abi::wrmsr(arch::GS_BASE, 0);
    verdict
}

/// INVPCID, where the CPU has it.
fn invpcid() -> Verdict {
    if abi::native_cpuid(7, 0)[1] >> 10 & 1 == 0 {
        return skip("this CPU has no INVPCID");
    }
    let code = code::invpcid();
    for kind in 0..4 {
        paging::word(paging::frame(1)).store(0, Relaxed);
        Probe::of(code).with(|r| (r.rax, r.rbx) = (kind, paging::frame(1))).run().finished()?;
    }
    let event = Probe::of(code).with(|r| (r.rax, r.rbx) = (4, paging::frame(1))).run().event();
    event.is(GP, 0, code.start)
}

/// Caches are coherent: nothing happens.
fn caches() -> Verdict {
    run(code::wbinvd(), 0).finished()?;
    run(code::invd(), 0).finished()
}

/// Descriptor tables and the task register are L1's; loading them has no effect.
fn tables_are_ignored() -> Verdict {
    for code in [code::lgdt(), code::lidt(), code::lldt(), code::ltr()] {
        Probe::of(code).with(|r| (r.rax, r.rbx) = (0x1234, paging::frame(0))).run().finished()?;
    }
    Start::of(crate::user::code::undefined()).run().is(UD, 0, crate::user::code::undefined().start)
}

/// XCR0: what the CPU offers or less, x87 always, AVX only with SSE.
fn xsetbv() -> Verdict {
    if abi::native_cpuid(1, 0)[2] >> 27 & 1 == 0 {
        return skip("this CPU has no XSAVE");
    }
    let offered = Probe::of(crate::kernel::code::xgetbv()).run().registers.rax;
    let set = |index: u64, value: u64| {
        Probe::of(code::xsetbv())
            .with(|r| (r.rcx, r.rax, r.rdx) = (index, value & 0xffff_ffff, value >> 32))
            .run()
    };
    for value in [offered, 3, 1] {
        set(0, value).finished()?;
    }
    for (name, index, value) in [
        ("without x87", 0, 2),
        ("nothing", 0, 0),
        ("AVX without SSE", 0, 5),
        ("what the CPU lacks", 0, offered | 1 << 62),
        ("another register", 1, offered),
    ] {
        set(index, value).event().is(GP, 0, code::xsetbv().start).case(name)?;
    }
    set(0, offered).finished()
}

/// Where CPUID shows it the bases may be read and written by instructions; else those are none.
fn fsgsbase() -> Verdict {
    use crate::kernel::code;
    const BASE: u64 = 0x7000_3000;
    let write = |code| Probe::of(code).with(|r| r.rbx = BASE).run();
    if abi::cpuid(7, 0)[1] & 1 == 0 {
        for code in [code::read_fs_base(), code::write_fs_base()] {
            Probe::of(code).run().event().is(UD, 0, code.start)?;
        }
        return skip("this CPU has no FSGSBASE; its instructions are #UD, as they should");
    }
    for (index, reads, writes) in [
        (arch::FS_BASE, code::read_fs_base(), code::write_fs_base()),
        (arch::GS_BASE, code::read_gs_base(), code::write_gs_base()),
    ] {
        write(writes).finished()?;
        let (by_msr, by_instruction) = (abi::rdmsr(index), Probe::of(reads).run());
        abi::wrmsr(index, 0);
        equal("the MSR", by_msr, BASE)?;
        by_instruction.finished()?;
        equal("what is read", by_instruction.registers.rax, BASE)?;
    }
    Ok(())
}

/// Whether the CPU traps these in user mode: then so it does in the guest's supervisor mode.
fn has_umip() -> bool {
    let code = user::code::sgdt();
    Start::of(code).with(|r| r.rbx = stack_top() - 64).run().vector == Some(GP)
}

/// SGDT, SIDT, SLDT, STR, SMSW: emulated as empty where the CPU has UMIP, native where not.
fn descriptor_tables() -> Verdict {
    let memory = paging::frame(0);
    let umip = has_umip();
    let store = |code: Code| {
        paging::word(memory).store(u64::MAX, Relaxed);
        paging::word(memory + 8).store(u64::MAX, Relaxed);
        let probe = Probe::of(code).with(|r| (r.rax, r.rbx) = (u64::MAX, memory));
        let (done, seen) = Counters::with(|| probe.run());
        counted("emulated", seen.count(Exit::Emulated), umip.into())?;
        let words = [memory, memory + 8].map(|at| paging::word(at).load(Relaxed));
        Ok::<_, Wrong>((done.registers.rax, words))
    };
    for (name, code) in [("SGDT", code::sgdt()), ("SIDT", code::sidt())] {
        let (_, words) = store(code).case(name)?;
        equal("past the table register", words[1] >> 16, u64::MAX >> 16).case(name)?;
        if umip {
            equal("limit and base", words[0], 0).case(name)?;
            equal("base", words[1] & 0xffff, 0).case(name)?;
        } else {
            holds("something of L1's", words[0] != u64::MAX).case(name)?;
        }
    }
    for (name, code) in [("SLDT", code::sldt()), ("STR", code::str())] {
        let (rax, _) = store(code).case(name)?;
        equal("selector", rax, if umip || name == "SLDT" { 0 } else { 0x40 }).case(name)?;
    }
    equal("SLDT to memory", store(code::sldt_memory())?.1[0], !0xffff)?;
    let cr0 = read(code::read_cr0()) & 0xffff;
    equal("SMSW", store(code::smsw())?.0 & 0xfff1, cr0 & 0xfff1)?;
    equal("SMSW of 16 bits", store(code::smsw_word())?.0 >> 16, u64::MAX >> 16)?;
    equal("SMSW to memory", store(code::smsw_memory())?.1[0] & 0xfff1, cr0 & 0xfff1)
}

/// In user mode all of them are a plain #GP, at a cost of one exit.
fn user_mode() -> Verdict {
    let has =
        |leaf: u32, register: usize, bit: u32| abi::native_cpuid(leaf, 0)[register] >> bit & 1 == 1;
    // What the CPU does by itself, or does not know.
    let native = |name: &str| match name {
        "sgdt" | "sidt" | "sldt" | "sldt_memory" | "str" | "smsw" | "smsw_word" | "smsw_memory" => {
            !has(7, 2, 2)
        }
        "xsetbv" => !has(1, 2, 27),
        "invpcid" => !has(7, 1, 10),
        // QEMU's emulator does not ask for the mode, as of 10.0.
        "wbinvd" | "invd" => true,
        _ => false,
    };
    for (name, code) in user::ALL.iter().filter(|(name, _)| !native(name)) {
        let start = Start::of(code()).with(|r| r.rbx = stack_top() - 64);
        let (trap, seen) = Counters::with(|| start.run());
        trap.is(GP, 0, start.rip).case(name)?;
        seen.exactly(&[(Exit::GeneralProtection, 1)]).case(name)?;
    }
    Ok(())
}
