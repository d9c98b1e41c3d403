//! The hypercalls as calls: numbers, registers, results, cost. What they do to interrupts and
//! translations is judged where those are.

use super::{Group, Setting, check};
use crate::{
    abi,
    counters::{self, Counters, Exit, counted},
    interrupts,
    kernel::code,
    paging::{self, A, D, P, W},
    privileged,
    probe::Probe,
    registers::{Equal, Registers},
    tap::{Case, Verdict, equal, holds},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{hypercall as nr, msr::arch, msr::x2apic, pvcs::flags};

pub const GROUP: Group = Group {
    name: "hypercall",
    setting: Setting::Anywhere,
    checks: &[
        check("unknown_numbers", "HC-2", unknown_numbers),
        check("registers", "HC-1", registers),
        check("flags", "HC-1", rflags),
        check("cost", "CNT-2", cost),
        check("load_pgtbl", "HC-3", load_pgtbl),
        check("load_pgtbl_bad_root", "HC-3", load_pgtbl_bad_root),
        check("load_pgtbl_other_bits", "HC-3 MMU-7", load_pgtbl_other_bits),
        check("invlpg_any_address", "HC-8", invlpg_any_address),
    ],
};

/// Numbers that are no call: the rest of PVM's, KVM's, and the whole register counts.
fn unknown_numbers() -> Verdict {
    let pvm = [10, 16, 0x55, 0xff].map(|offset| nr::PVM_BASE + offset);
    let others = [0, 1, 5, 12, nr::PVM_BASE - 1, 1 << 32 | nr::TLB_FLUSH, u64::MAX];
    for number in pvm.into_iter().chain(others) {
        equal("result", abi::call(number, [0; 4]), nr::ENOSYS)?;
    }
    Ok(())
}

fn probe(number: u64, first: u64, second: u64) -> Probe {
    Probe::of(code::hypercall()).with(|r| {
        *r = Registers { rsp: r.rsp, ..Registers::pattern() };
        (r.rax, r.rbx, r.r10) = (number, first, second);
        // An argument of LOAD_TLS alone: a descriptor that is none.
        if number == nr::LOAD_TLS {
            r.rdx = 0;
        }
    })
}

/// Every call keeps every register but RAX, RCX and R11.
fn registers() -> Verdict {
    let cr3 = paging::cr3(0);
    let calls = [
        ("LOAD_PGTBL", probe(nr::LOAD_PGTBL, nr::LOAD_PGTBL_FLUSH, cr3), 0),
        ("IRQ_WIN", probe(nr::IRQ_WIN, 0, 0), 0),
        ("IRQ_HALT", probe(nr::IRQ_HALT, 0, 0), 0),
        ("TLB_FLUSH", probe(nr::TLB_FLUSH, 0, 0), 0),
        ("TLB_FLUSH_CURRENT", probe(nr::TLB_FLUSH_CURRENT, 0, 0), 0),
        ("TLB_INVLPG", probe(nr::TLB_INVLPG, paging::AREA, 0), 0),
        ("LOAD_GS", probe(nr::LOAD_GS, 0, 0), 0),
        ("RDMSR", probe(nr::RDMSR, arch::EFER.into(), 0), 0xd01),
        ("WRMSR", probe(nr::WRMSR, arch::CSTAR.into(), 0), 0),
        ("LOAD_TLS", probe(nr::LOAD_TLS, 0, 0), 0),
        ("an unknown number", probe(nr::PVM_BASE + 10, 0, 0), nr::ENOSYS),
    ];
    for (name, call, result) in calls {
        // Something for IRQ_HALT to wake up to.
        if call.registers.rax == nr::IRQ_HALT {
            abi::wrmsr(x2apic::SELF_IPI, 0x31);
        }
        let done = call.run();
        abi::pvcs().disable_interrupts();
        done.finished().case(name)?;
        equal("result", done.registers.rax, result).case(name)?;
        let Registers { rax, rcx, r11, .. } = done.registers;
        let expected = Registers { rax, rcx, r11, ..call.registers };
        done.registers.equal(&expected).case(name)?;
    }
    equal("the interrupt", interrupts::vector(interrupts::count() - 1), 0x31)
}

/// The arithmetic flags, DF and AC survive a call.
fn rflags() -> Verdict {
    let done = Probe::of(code::hypercall_with_flags()).with(|r| r.rax = nr::TLB_FLUSH).run();
    done.finished()?;
    equal("RFLAGS", done.rflags, done.registers.rbx)?;
    equal("they were set", done.rflags & 0x4_0cd5, 0x4_0cd5)
}

/// One exit for each, of its own kind.
fn cost() -> Verdict {
    counters::needed()?;
    let calls = [
        (Exit::LoadPgtbl, nr::LOAD_PGTBL, [nr::LOAD_PGTBL_FLUSH, paging::cr3(0)]),
        (Exit::Hypercall, nr::IRQ_WIN, [0; 2]),
        (Exit::Flush, nr::TLB_FLUSH, [0; 2]),
        (Exit::Flush, nr::TLB_FLUSH_CURRENT, [0; 2]),
        (Exit::Invlpg, nr::TLB_INVLPG, [paging::AREA, 0]),
        (Exit::Hypercall, nr::LOAD_GS, [0; 2]),
        (Exit::HypercallMsr, nr::RDMSR, [arch::EFER.into(), 0]),
        (Exit::HypercallMsr, nr::WRMSR, [arch::CSTAR.into(), 0]),
        (Exit::Hypercall, nr::LOAD_TLS, [0; 2]),
        (Exit::Hypercall, nr::PVM_BASE + 10, [0; 2]),
    ];
    for (exit, number, [first, second]) in calls {
        let seen = Counters::of(|| abi::call(number, [first, second, 0, 0]));
        seen.exactly(&[(exit, 1)])?;
        counted("events", seen.events, 0)?;
    }
    abi::wrmsr(x2apic::SELF_IPI, 0x31);
    let seen = Counters::of(|| {
        abi::call(nr::IRQ_HALT, [0; 4]);
    });
    abi::pvcs().disable_interrupts();
    // The halt, and the handler's end of interrupt.
    seen.exactly(&[(Exit::Halt, 1), (Exit::HypercallMsr, 1)])
}

fn load_area() -> u64 {
    Probe::of(code::load()).with(|r| r.rbx = paging::AREA).run().registers.rax
}

/// Two spaces show different frames at one address, with and without the flush flag.
fn load_pgtbl() -> Verdict {
    for space in 0..2 {
        paging::word(paging::frame(space)).store(0x1000 + space as u64, Relaxed);
        paging::area_entry(space, 0).store(paging::frame(space) | P | W | A | D, Relaxed);
    }
    for flag in [nr::LOAD_PGTBL_FLUSH, 0] {
        for round in 0..4 {
            let space = round % 2;
            equal("result", paging::load_cr3(flag, paging::cr3(space)), 0)?;
            equal("what is at the address", load_area(), 0x1000 + space as u64)?;
        }
    }
    // Spaces that were used before cost nothing but the call.
    let seen = Counters::of(|| {
        paging::load_cr3(0, paging::cr3(1));
        load_area();
        paging::load_cr3(0, paging::cr3(0));
        load_area();
    });
    seen.exactly(&[(Exit::LoadPgtbl, 2), (Exit::PageFaultFilled, 0)])
}

/// A root that is no RAM is ignored.
fn load_pgtbl_bad_root() -> Verdict {
    for root in [1 << 36, 0xfec0_0000, 0x000f_ffff_ffff_f000] {
        equal("result", paging::load_cr3(nr::LOAD_PGTBL_FLUSH, root), 0)?;
        let done = Probe::of(privileged::kernel::code::read_cr3()).run();
        equal("CR3", done.registers.rax, paging::cr3(0))?;
    }
    Ok(())
}

/// PCID bits and the LA57 flag do not change what is loaded.
fn load_pgtbl_other_bits() -> Verdict {
    paging::word(paging::frame(0)).store(0x1234, Relaxed);
    paging::area_entry(0, 0).store(paging::frame(0) | P | W | A | D, Relaxed);
    for (flag, bits) in [(1, 0x5), (0, 0x7ff), (3, 0), (1, 0x1)] {
        equal("result", paging::load_cr3(flag, paging::cr3(0) | bits), 0)?;
        equal("what is at the address", load_area(), 0x1234)?;
    }
    Ok(())
}

/// INVLPG of an address that nobody can have is harmless.
fn invlpg_any_address() -> Verdict {
    for address in [0, 1 << 47, 0xffff_8080_0000_0000, 0xffff_8100_0000_0000, u64::MAX] {
        equal("result", abi::call1(nr::TLB_INVLPG, address), 0)?;
    }
    holds("interrupts are still off", abi::pvcs().event_flags() & flags::IF == 0)
}
