//! VCPU_STRUCT: registering the page that is shared with L1.

use super::{
    Group, Setting, check,
    msr_access::{reads, refuses, wrmsr},
};
use crate::{
    abi,
    counters::{Counters, Exit, counted},
    kernel, paging, privileged,
    probe::Probe,
    tap::{Verdict, equal, holds},
    user::{Start, code},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    event::UD,
    msr::PVM_VCPU_STRUCT as VCPU_STRUCT,
    pvcs::{flags, offset},
};

pub const GROUP: Group = Group {
    name: "pvcs",
    setting: Setting::Anywhere,
    checks: &[
        check("address", "MSR-4 PVCS-1 ERR-1", address),
        check("none", "PVCS-2 MSR-4", none),
        check("without_ram", "PVCS-2 MSR-4", without_ram),
        check("another_page", "MSR-4 PVCS-1", another_page),
        check("left_behind", "MSR-4 PVCS-4", left_behind),
        check("interrupt_flag", "PVCS-3 EVT-9", interrupt_flag),
        check("reserved_words", "PVCS-1 PVCS-4", reserved_words),
    ],
};

/// A page-aligned address or nothing.
fn address() -> Verdict {
    reads(VCPU_STRUCT, abi::first_pvcs())?;
    for low in [1, 8, 128, 0xfff] {
        refuses(VCPU_STRUCT, abi::first_pvcs() | low)?;
    }
    Ok(())
}

/// Without one, hypercalls and trapped instructions work on; only events and ERETU do not.
fn none() -> Verdict {
    let shared = abi::first_pvcs();
    holds("0 is accepted", abi::wrmsr(VCPU_STRUCT, 0))?;
    let read = abi::rdmsr(VCPU_STRUCT);
    let trapped = wrmsr(VCPU_STRUCT, 0);
    let done = Probe::of(kernel::code::sti_cli()).run();
    holds("back", abi::register_pvcs(shared))?;
    equal("VCPU_STRUCT", read, 0)?;
    holds("WRMSR is emulated", trapped)?;
    done.finished()?;
    Start::of(code::syscall()).run().is_syscall(code::syscall().end)
}

/// An address without RAM is accepted; it is the next event that would be fatal.
fn without_ram() -> Verdict {
    const NOWHERE: u64 = 1 << 36;
    let accepted = abi::wrmsr(VCPU_STRUCT, NOWHERE);
    let read = abi::rdmsr(VCPU_STRUCT);
    holds("back", abi::register_pvcs(abi::first_pvcs()))?;
    holds("accepted", accepted)?;
    equal("VCPU_STRUCT", read, NOWHERE)
}

/// Another page takes over everything, direct switches included, and the old one is left alone.
fn another_page() -> Verdict {
    let old = abi::pvcs();
    paging::word(paging::frame(0) + offset::EVENT_FLAGS as u64).store(0, Relaxed);
    old.set_word(offset::RIP, 0x1111);
    holds("accepted", abi::register_pvcs(paging::frame(0)))?;
    let event = Start::of(code::undefined()).run();
    let (call, seen) = Counters::with(|| Start::of(code::syscall()).run());
    let kernel = Probe::of(kernel::code::undefined()).run();
    holds("back", abi::register_pvcs(old.address()))?;
    event.is(UD, 0, code::undefined().start)?;
    call.is_syscall(code::syscall().end)?;
    counted("direct switches", seen.direct_switches, 2)?;
    seen.exactly(&[])?;
    kernel.event().is(UD, 0, kernel::code::undefined().start)?;
    equal("the old page", old.word(offset::RIP), 0x1111)
}

/// What L1 writes goes to the page that is registered, and stays in it.
fn left_behind() -> Verdict {
    let first = abi::first_pvcs();
    let cr2 = paging::word(paging::frame(0) + offset::CR2 as u64);
    for round in 0x11..0x20 {
        holds("accepted", abi::register_pvcs(paging::frame(0)))?;
        let written =
            Probe::of(privileged::kernel::code::write_cr2()).with(|r| r.rax = round).run();
        holds("back", abi::register_pvcs(first))?;
        written.finished()?;
        equal("PVCS.cr2 of the page left behind", cr2.load(Relaxed), round)?;
    }
    Ok(())
}

/// IF is the guest's own word: setting and clearing it costs no exit.
fn interrupt_flag() -> Verdict {
    let shared = abi::pvcs();
    let seen = Counters::of(|| {
        for _ in 0..100 {
            shared.enable_interrupts();
            shared.disable_interrupts();
        }
    });
    seen.exactly(&[(Exit::PageFaultFilled, 0)])?;
    equal("event_flags", shared.event_flags(), 0)
}

/// L1 writes nothing but the fields, and ignores reserved bits of event_flags.
fn reserved_words() -> Verdict {
    const RESERVED: u64 = 0xdead_0000_0000_00ff;
    let shared = abi::pvcs();
    let unused = || (0x10usize..0x40).step_by(8).chain((0x70..0x1000).step_by(8));
    for at in unused() {
        shared.set_word(at, 0x5555_0000 | at as u64);
    }
    shared.set_word(offset::EVENT_FLAGS, RESERVED);
    Start::of(code::undefined()).run().is(UD, 0, code::undefined().start)?;
    Start::of(code::syscall()).run().is_syscall(code::syscall().end)?;
    let event = Probe::of(kernel::code::undefined()).run().event();
    let after = shared.event_flags();
    shared.set_word(offset::EVENT_FLAGS, 0);
    let mut verdict = equal("reserved bits", after, RESERVED);
    for at in unused() {
        verdict = verdict.and(equal("an unused word", shared.word(at), 0x5555_0000 | at as u64));
        shared.set_word(at, 0);
    }
    verdict?;
    equal("no interrupt flag came of it", event.rflags & flags::IF, 0)?;
    equal("pkru", shared.word(offset::EFLAGS) >> 32, 0)
}
