//! Page faults that come without L1, by what it saw of the tables when it was left.

use super::{Group, Setting, check};
use crate::{
    abi,
    counters::{self, Counters, Exit, counted},
    entry,
    extension::enable,
    paging::{self, A, NX, P, U},
    registers::Equal,
    tap::{Verdict, equal, holds},
    user::{self, Start, Trap},
};
use core::{ops::Range, sync::atomic::Ordering::Relaxed};
use pv_abi::{
    event::{PF, pf},
    ext::{self, Features, counter},
    hypercall as nr,
};

pub const GROUP: Group = Group {
    name: "early_fault",
    setting: Setting::Extension,
    checks: &[
        check("off", "FEAT-13", off),
        check("from_page_to_page", "FEAT-13 FLT-1 CNT-5", from_page_to_page),
        check("next_page", "FEAT-13 FLT-1", next_page),
        check("other_accesses", "FLT-1", other_accesses),
        check("mapped_meanwhile", "FLT-2", mapped_meanwhile),
        check("mapped_before_an_exit", "FLT-2", mapped_before_an_exit),
    ],
};

/// What pages hold: their number, and this.
const SALT: u64 = 0x5a17_0000;

fn begin(features: Features) -> Verdict {
    enable(Features::PREFAULT | features)?;
    abi::wrmsr(ext::msr::RETU_PREFAULT_RIP, &raw const entry::retu_prefault_instruction as u64);
    Ok(())
}

/// Faults that come early of `count` that may: none on a CPU without FSGSBASE, by which the base of GS is
/// exchanged. None has come then when many could have.
fn early(count: u64) -> u64 {
    if counters::read(counter::EARLY_FAULTS) == 0 { 0 } else { count }
}

fn load(page: usize) -> Start {
    Start::of(user::code::load()).with(|r| r.rbx = paging::area(page))
}

/// As a kernel maps a page after its fault, which the access has found accessed.
fn map(page: usize) {
    paging::word(paging::frame(page)).store(SALT + page as u64, Relaxed);
    paging::area_entry(0, page).store(paging::frame(page) | P | U | A | NX, Relaxed);
}

fn is_fault(trap: &Trap, start: &Start, page: usize, error: u64) -> Verdict {
    trap.is(PF, error, start.rip)?;
    equal("CR2", trap.event.cr2, paging::area(page))
}

/// User mode has faulted at `page`, which is mapped then, and reads it; those behind it are absent.
fn touched(page: usize) -> Verdict {
    (page..page + 4).for_each(|page| {
        paging::set_area(page, 0);
    });
    let start = load(page);
    is_fault(&start.run(), &start, page, pf::USER)?;
    map(page);
    equal("RAX", start.run_prefault().registers.rax, SALT + page as u64)
}

/// Without the feature each fault is an exit.
fn off() -> Verdict {
    begin(Features::empty())?;
    let (result, seen) = walk(40..80);
    result?;
    seen.exactly(&[(Exit::EretuPrefault, 40), (Exit::PageFaultReflected, 40)])?;
    counted("early faults", seen.early_faults, 0)
}

/// User mode goes from page to page, each of which is mapped after its fault.
fn walk(pages: Range<usize>) -> (Verdict, Counters) {
    pages.clone().for_each(|page| {
        paging::set_area(page, 0);
    });
    Counters::with(|| {
        pages.clone().try_for_each(|page| {
            let start = load(page);
            is_fault(&start.run(), &start, page, pf::USER)?;
            map(page);
            equal("RAX", start.run_prefault().registers.rax, SALT + page as u64)
        })
    })
}

/// The page behind one that was just mapped: its fault is what it would be from L1.
fn next_page() -> Verdict {
    begin(Features::EARLY_FAULTS)?;
    let start = load(21).flags(0x8d5).with(|r| (r.rax, r.rcx, r.r11) = (1, 2, 3));
    let start = Start { gsbase: 0x1234_5000, ..start };
    let (trap, seen) = Counters::with(|| touched(20).map(|()| start.run()));
    let trap = trap?;
    is_fault(&trap, &start, 21, pf::USER)?;
    trap.registers.equal(&start.registers)?;
    equal("flags", trap.event.rflags & !(1 << 16), start.rflags)?;
    equal("GS base", trap.event.user_gsbase, start.gsbase)?;
    equal("selectors", trap.event.selectors.into(), start.selectors.into())?;
    seen.exactly(&[
        (Exit::EretuPrefault, 1),
        (Exit::PageFaultReflected, 2 - early(1)),
        (Exit::Invlpg, 4),
    ])?;
    counted("events", seen.events, 2)?;
    counted("early faults", seen.early_faults, early(1))
}

/// A program that goes from page to page costs one exit a page.
fn from_page_to_page() -> Verdict {
    const PAGES: u64 = 40;
    begin(Features::EARLY_FAULTS)?;
    let (result, seen) = walk(40..40 + PAGES as usize);
    result?;
    seen.exactly(&[
        (Exit::EretuPrefault, PAGES),
        (Exit::PageFaultReflected, PAGES - early(PAGES - 1)),
    ])?;
    counted("events", seen.events, PAGES)?;
    counted("early faults", seen.early_faults, early(PAGES - 1))
}

/// Writes and fetches are told as what they are; a page that is there is not said to be absent.
fn other_accesses() -> Verdict {
    begin(Features::EARLY_FAULTS)?;
    touched(20)?;
    let write = Start::of(user::code::store()).with(|r| r.rbx = paging::area(21));
    is_fault(&write.run(), &write, 21, pf::USER | pf::WRITE)?;
    touched(20)?;
    let fetch = Start::of(user::code::jump()).with(|r| r.rbx = paging::area(21));
    let trap = fetch.run();
    is_fault(&trap, &Start { rip: paging::area(21), ..fetch }, 21, pf::USER | pf::FETCH)?;
    touched(20)?;
    let write = Start::of(user::code::store()).with(|r| r.rbx = paging::area(20));
    is_fault(&write.run(), &write, 20, pf::USER | pf::WRITE | pf::PRESENT)?;
    touched(20)?;
    let far = load(23);
    is_fault(&far.run(), &far, 23, pf::USER)
}

/// A page that was mapped since may fault, once.
fn mapped_meanwhile() -> Verdict {
    begin(Features::EARLY_FAULTS)?;
    touched(20)?;
    map(21);
    let start = load(21);
    let first = start.run();
    let early = first.vector.is_some();
    if early {
        is_fault(&first, &start, 21, pf::USER)?;
    }
    let read = if early { start.run() } else { first };
    holds("the second time", read.vector.is_none())?;
    equal("RAX", read.registers.rax, SALT + 21)
}

/// Whatever the exit was for.
fn mapped_before_an_exit() -> Verdict {
    begin(Features::EARLY_FAULTS)?;
    for call in [nr::TLB_FLUSH_CURRENT, nr::IRQ_WIN] {
        touched(20)?;
        map(21);
        abi::call1(call, 0);
        equal("RAX", load(21).run().registers.rax, SALT + 21)?;
    }
    Ok(())
}
