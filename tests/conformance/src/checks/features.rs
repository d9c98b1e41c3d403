//! The extension's other features. They stay on once they are enabled, so these checks come last,
//! and each enables one more.

use super::{Group, Setting, check, msr_access};
use crate::{
    abi::{self, pvcs},
    counters::{Counters, Exit, counted},
    entry,
    extension::{enable, enabled},
    interrupts, kernel,
    paging::{self, A, D, NX, P, U, W},
    probe::Probe,
    tap::{Verdict, equal, holds},
    user::{self, Start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    event::{BP, PF, RFLAGS_IF, pf},
    ext::{self, Features, call},
    hypercall,
    msr::{arch, x2apic},
    pvcs::{flags, offset},
};

pub const GROUP: Group = Group {
    name: "feature",
    setting: Setting::Extension,
    checks: &[
        check("prefault", "FEAT-3 XMSR-0", prefault),
        check("prefault_other_address", "FEAT-3 XMSR-0", prefault_other_address),
        check("auto_eoi", "FEAT-5", auto_eoi),
        check("auto_eoi_of_two", "FEAT-5 EVT-9", auto_eoi_of_two),
        check("take_irq", "FEAT-5 XHC-13", take_irq),
        check("wide_va", "FEAT-0 MMU-1", wide_va),
        check("syscall_reflection", "FEAT-1 XMSR-1 XMSR-2", syscall_reflection),
        check("reflection_leaves_users_alone", "FEAT-1 EVT-5", reflection_leaves_users_alone),
        check("native_gs", "FEAT-8", native_gs),
        check("still_no_notes", "FEAT-2 FEAT-6 EXT-3 XHC-6 XHC-7 XHC-8", still_no_notes),
    ],
};

/// A user page that is absent, and the fault that says so; the page's address.
fn faulted(index: usize) -> Result<(Start, u64), crate::tap::Wrong> {
    let address = paging::set_area(index, 0);
    let start = Start::of(user::code::load()).with(|r| r.rbx = address);
    start.run().is(PF, pf::USER, start.rip)?;
    Ok((start, address))
}

/// ERETU at the other address maps the page of the fault just handled: the access then succeeds
/// at once.
fn prefault() -> Verdict {
    enable(Features::PREFAULT)?;
    let instruction = &raw const entry::retu_prefault_instruction as u64;
    msr_access::keeps(ext::msr::RETU_PREFAULT_RIP, instruction, instruction)?;
    let (start, _) = faulted(20)?;
    paging::word(paging::frame(20)).store(0x1234, Relaxed);
    paging::area_entry(0, 20).store(paging::frame(20) | P | U | NX, Relaxed);
    let mut rax = 0;
    let seen = Counters::of(|| rax = start.run_prefault().registers.rax);
    equal("RAX", rax, 0x1234)?;
    seen.exactly(&[(Exit::EretuPrefault, 1), (Exit::PageFaultFilled, 0)])?;
    counted("entries", seen.fills, 1)?;
    equal("A", paging::area_entry(0, 20).load(Relaxed) & (A | D), A)?;
    // The fault is spent: the next such return maps nothing.
    let seen = Counters::of(|| start.run_prefault());
    seen.exactly(&[(Exit::EretuPrefault, 1), (Exit::PageFaultFilled, 0)])
}

/// It maps nothing if the PVCS names another address, or if the guest has not mapped the page.
fn prefault_other_address() -> Verdict {
    enable(Features::PREFAULT)?;
    abi::wrmsr(ext::msr::RETU_PREFAULT_RIP, &raw const entry::retu_prefault_instruction as u64);
    let (start, _) = faulted(40)?;
    paging::area_entry(0, 40).store(paging::frame(20) | P | U | NX, Relaxed);
    pvcs().set_word(offset::CR2, paging::area(41));
    let seen = Counters::of(|| start.run_prefault());
    seen.exactly(&[(Exit::EretuPrefault, 1), (Exit::PageFaultFilled, 1)])?;
    let (start, address) = faulted(60)?;
    let trap = start.run_prefault();
    trap.is(PF, pf::USER, start.rip)?;
    equal("CR2", trap.event.cr2, address)
}

fn let_in() -> u64 {
    let before = interrupts::count();
    pvcs().enable_interrupts();
    pvcs().disable_interrupts();
    (interrupts::count() - before) as u64
}

/// Delivering an interrupt ends it.
fn auto_eoi() -> Verdict {
    enable(Features::AUTO_EOI)?;
    interrupts::without_eoi(|| {
        for vector in [0x51, 0x58, 0x41] {
            abi::wrmsr(x2apic::SELF_IPI, vector);
            equal("interrupts", let_in(), 1)?;
            equal("priority", abi::rdmsr(x2apic::PPR), 0)?;
        }
        Ok(())
    })
}

/// Two that wait are delivered one after the other, and the first one's handler sees that another waits.
fn auto_eoi_of_two() -> Verdict {
    enable(Features::AUTO_EOI)?;
    interrupts::without_eoi(|| {
        for vector in [0x41, 0x61] {
            abi::wrmsr(x2apic::SELF_IPI, vector);
        }
        let before = interrupts::count();
        equal("interrupts", let_in() + let_in(), 2)?;
        equal("the first", interrupts::vector(before), 0x61)?;
        equal("its event_flags", interrupts::flags(before), flags::IP)?;
        equal("the second", interrupts::vector(before + 1), 0x41)?;
        equal("its event_flags", interrupts::flags(before + 1), 0)
    })
}

/// TAKE_IRQ hands interrupts over without an event, highest first.
fn take_irq() -> Verdict {
    enable(Features::AUTO_EOI)?;
    for vector in [0x41, 0x61, 0x51] {
        abi::wrmsr(x2apic::SELF_IPI, vector);
    }
    equal("IP", pvcs().event_flags(), flags::IP)?;
    for vector in [0x61, 0x51, 0x41, 0] {
        equal("vector", abi::call(call::TAKE_IRQ, [0; 4]), vector)?;
    }
    equal("event_flags", pvcs().event_flags(), 0)?;
    equal("events for them", let_in(), 0)
}

const fn slot(number: u64) -> u64 {
    0xffff_0000_0000_0000 | number << 39
}

/// Every slot of the upper half but L1's sixteen.
fn wide_va() -> Verdict {
    enable(Features::WIDE_VA)?;
    let load = |address| Probe::of(kernel::code::load()).with(|r| r.rbx = address).run();
    for number in [272, 273, 300, 471, 472, 504, 511] {
        paging::word(paging::frame(0)).store(number, Relaxed);
        paging::map(0, slot(number), paging::frame(0) | P | W | A, 1);
        let done = load(slot(number));
        done.finished()?;
        equal("what is there", done.registers.rax, number)?;
        paging::entry(0, slot(number), 4).store(0, Relaxed);
    }
    for number in 256..272 {
        paging::map(0, slot(number), paging::frame(0) | P | W | A, 1);
        paging::flush();
        load(slot(number)).event().is(PF, 0, kernel::code::load().start)?;
        let trap = Start::of(user::code::load()).with(|r| r.rbx = slot(number)).run();
        trap.is(PF, pf::USER, user::code::load().start)?;
        paging::entry(0, slot(number), 4).store(0, Relaxed);
        // The tables are free again.
        paging::reset();
    }
    Ok(())
}

/// Puts code to a page of the area, outside the guest's text, for the kernel.
fn outside(bytes: &[u8]) -> u64 {
    paging::write_bytes(paging::frame(3), bytes);
    paging::set_area(3, paging::frame(3) | P | W | A | D)
}

const SYSCALL_INT3: [u8; 3] = [0x0f, 0x05, 0xcc];

/// Declares the guest's text, up to the user's pages, and has what comes from elsewhere reflected.
fn reflect() -> Verdict {
    let text = &raw const entry::event_entry as u64 & !0xfffff;
    holds("start", abi::wrmsr(ext::msr::REFLECT_START, text))?;
    holds("end", abi::wrmsr(ext::msr::REFLECT_END, user::code::syscall().start & !0xfff))?;
    enable(Features::SYSCALL_REFLECTION)
}

/// A supervisor SYSCALL from elsewhere is an event; from the declared text it is a hypercall.
fn syscall_reflection() -> Verdict {
    let call = |address| {
        Probe::at(address).with(|r| (r.rax, r.rbx) = (hypercall::RDMSR, arch::EFER.into()))
    };
    let address = outside(&SYSCALL_INT3);
    if !enabled().contains(Features::SYSCALL_REFLECTION) {
        let done = call(address).run();
        done.event().is(BP, 0, address + 3)?;
        equal("a hypercall before", done.registers.rax, 0xd01)?;
    }
    reflect()?;
    let done = call(address).run();
    done.event().is(ext::event::SYSCALL, 0, address + 2)?;
    equal("RAX", done.registers.rax, hypercall::RDMSR)?;
    equal("RCX", done.event().rcx, address + 2)?;
    equal("R11", done.event().r11 & 0x202, 0x202)?;
    let seen = Counters::of(|| call(address).run());
    seen.exactly(&[(Exit::SyscallReflected, 1)])?;
    equal("a hypercall from the text", abi::rdmsr(arch::EFER), 0xd01)?;
    for index in [ext::msr::REFLECT_START, ext::msr::REFLECT_END] {
        holds("not to be read", msr_access::rdmsr(index).is_none())?;
    }
    // STI and CLI there leave the flag alone.
    pvcs().enable_interrupts();
    let cleared = Probe::at(outside(&[0xfa, 0xcc])).run().event().rflags & RFLAGS_IF;
    pvcs().disable_interrupts();
    let set = Probe::at(outside(&[0xfb, 0xcc])).run().event().rflags & RFLAGS_IF;
    equal("IF after CLI", cleared, RFLAGS_IF)?;
    equal("IF after STI", set, 0)
}

/// System calls of user mode go where they went.
fn reflection_leaves_users_alone() -> Verdict {
    reflect()?;
    let seen = Counters::of(|| Start::of(user::code::syscall()).run());
    seen.exactly(&[])?;
    counted("direct switches", seen.direct_switches, 2)
}

/// From outside the text, GS_BASE is the kernel's own and KERNEL_GS_BASE the user's.
fn native_gs() -> Verdict {
    const KERNEL: u64 = 0xffff_ec00_0000_7000;
    const USER: u64 = 0x7000_5000;
    reflect()?;
    enable(Features::NATIVE_GS)?;
    let access = |code: [u8; 3], index: u32, value: u64| {
        let probe = Probe::at(outside(&code));
        probe
            .with(|r| (r.rcx, r.rax, r.rdx) = (index.into(), value & 0xffff_ffff, value >> 32))
            .run()
    };
    let read = |index| {
        let done = access([0x0f, 0x32, 0xcc], index, 0);
        done.registers.rdx << 32 | done.registers.rax
    };
    let write = |index, value| access([0x0f, 0x30, 0xcc], index, value).event().vector();
    let vectors = [write(arch::GS_BASE, KERNEL), write(arch::KERNEL_GS_BASE, USER)];
    let seen = [read(arch::GS_BASE), read(arch::KERNEL_GS_BASE)];
    // From the text they mean what the ABI says.
    let ours = [abi::rdmsr(arch::GS_BASE), abi::rdmsr(arch::KERNEL_GS_BASE)];
    let user_gsbase = pvcs().word(offset::USER_GSBASE);
    Start::of(user::code::syscall()).run();
    let at_entry = abi::rdmsr(arch::GS_BASE);
    abi::wrmsr(arch::KERNEL_GS_BASE, 0);
    abi::wrmsr(arch::GS_BASE, 0);
    equal("vectors", vectors.into_iter().map(u64::from).sum(), 2 * u64::from(BP))?;
    equal("GS_BASE", seen[0], KERNEL)?;
    equal("KERNEL_GS_BASE", seen[1], USER)?;
    equal("GS_BASE from the text", ours[0], KERNEL)?;
    equal("KERNEL_GS_BASE from the text", ours[1], KERNEL)?;
    equal("PVCS.user_gsbase", user_gsbase, USER)?;
    equal("GS base at the next entry", at_entry, KERNEL)
}

/// With all else enabled, notes are still refused.
fn still_no_notes() -> Verdict {
    let notes = u64::from(Features::NOTES.bits());
    equal("ENABLE", abi::call1(call::ENABLE, notes), hypercall::EINVAL)?;
    equal("PIN_ROOT", abi::call1(call::PIN_ROOT, paging::cr3(0) >> 12), hypercall::EPERM)?;
    equal("UNPIN_ROOT", abi::call1(call::UNPIN_ROOT, paging::cr3(0) >> 12), hypercall::EPERM)?;
    holds("enabled", !enabled().intersects(Features::NOTES | Features::VM_WINDOW))?;
    paging::set_area(0, paging::frame(0) | P | W | U | A | D | NX);
    Start::of(user::code::load())
        .with(|r| r.rbx = paging::AREA)
        .run()
        .is_syscall(user::code::load().end)
}
