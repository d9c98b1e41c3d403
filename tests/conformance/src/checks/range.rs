//! LINEAR_ADDRESS_RANGE: which addresses a guest may use.

use super::{
    Group, Setting, check,
    msr_access::{keeps, reads, refuses},
};
use crate::{
    abi,
    counters::{Counters, Exit},
    kernel::code,
    paging::{self, A, P, TABLE, U, W},
    probe::Probe,
    tap::{Case, Verdict, equal, holds},
    user::{self, Start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    event::{PF, pf},
    msr::{DEFAULT_UPPER_SLOTS, PVM_LINEAR_ADDRESS_RANGE as RANGE, linear_address_range},
};

pub const GROUP: Group = Group {
    name: "range",
    setting: Setting::Anywhere,
    checks: &[
        check("default", "MMU-2 MSR-3", default),
        check("malformed", "MMU-2 MSR-3 ERR-1", malformed),
        check("outside_default", "MMU-2 MSR-3", outside_default),
        check("sub_range", "MMU-2", sub_range),
        check("empty", "MMU-2", empty),
        check("upper_slots", "MMU-1", upper_slots),
        check("foreign_slots", "MMU-1", foreign_slots),
    ],
};

const DEFAULT: u64 = linear_address_range(DEFAULT_UPPER_SLOTS.start, DEFAULT_UPPER_SLOTS.end);

/// First address of PML4 slot `slot` of the upper half.
const fn slot(slot: u64) -> u64 {
    0xffff_0000_0000_0000 | slot << 39
}

/// The default is slots 472 to 503, and 0 asks for it.
fn default() -> Verdict {
    equal("the default", DEFAULT, 0xffff_ffff_fff8_ffd8)?;
    reads(RANGE, DEFAULT)?;
    keeps(RANGE, DEFAULT, DEFAULT)?;
    keeps(RANGE, 0, DEFAULT)
}

/// Fixed bits must be 1, the start not behind the end, the five-level part empty.
fn malformed() -> Verdict {
    refuses(RANGE, 1).case("1")?;
    refuses(RANGE, DEFAULT & !(1 << 9)).case("fixed bit 9")?;
    refuses(RANGE, DEFAULT & !(1 << 63)).case("fixed bit 63")?;
    refuses(RANGE, DEFAULT & !(1 << 8)).case("a slot of the lower half")?;
    refuses(RANGE, linear_address_range(490, 480)).case("reversed")?;
    refuses(RANGE, DEFAULT & !(1 << 32)).case("a five-level range")
}

/// A range may only shrink.
fn outside_default() -> Verdict {
    refuses(RANGE, linear_address_range(471, 504))?;
    refuses(RANGE, linear_address_range(472, 505))?;
    refuses(RANGE, linear_address_range(256, 272)).case("the hypervisor's own slots")
}

fn load(address: u64) -> crate::probe::Done {
    Probe::of(code::load()).with(|r| r.rbx = address).run()
}

fn map_slot(number: u64) -> u64 {
    paging::map(0, slot(number), paging::frame(0) | P | W | A, 1);
    slot(number)
}

/// A smaller range takes effect at once: what lies outside faults as absent, the rest works on.
fn sub_range() -> Verdict {
    let (lost, kept) = (map_slot(472), map_slot(480));
    load(lost).finished()?;
    load(kept).finished()?;
    keeps(RANGE, linear_address_range(480, 490), linear_address_range(480, 490))?;
    let outside = load(lost);
    let inside = load(kept);
    keeps(RANGE, 0, DEFAULT)?;
    outside.event().is(PF, 0, code::load().start)?;
    equal("CR2", outside.event().cr2, lost)?;
    inside.finished()?;
    load(lost).finished()
}

/// The empty range leaves the lower half only.
fn empty() -> Verdict {
    let lost = map_slot(503);
    keeps(RANGE, linear_address_range(0x1ff, 0x1ff), linear_address_range(0x1ff, 0x1ff))?;
    let outside = load(lost);
    keeps(RANGE, 0, DEFAULT)?;
    outside.event().is(PF, 0, code::load().start)?;
    load(lost).finished()
}

/// Kernel and user pages work in the first and the last slot of the range.
fn upper_slots() -> Verdict {
    for number in [472, 503] {
        let kernel = map_slot(number);
        let user = kernel + 0x1000;
        paging::map(0, user, paging::frame(1) | P | U | A, 1);
        paging::word(paging::frame(0)).store(number, Relaxed);
        paging::word(paging::frame(1)).store(number + 1, Relaxed);
        let done = load(kernel);
        done.finished()?;
        equal("kernel page", done.registers.rax, number)?;
        let trap = Start::of(user::code::load()).with(|r| r.rbx = user).run();
        trap.is_syscall(user::code::load().end)?;
        equal("user page", trap.registers.rax, number + 1)?;
        let trap = Start::of(user::code::load()).with(|r| r.rbx = kernel).run();
        trap.is(PF, pf::PRESENT | pf::USER, user::code::load().start)?;
    }
    Ok(())
}

/// Whatever the guest's tables say: slots outside the range are absent, L1's own above all.
fn foreign_slots() -> Verdict {
    let foreign = [256, 257, 258, 263, 264, 271, 300, 471, 504, 511];
    for number in foreign {
        paging::map(0, slot(number), paging::frame(0) | TABLE, 1);
    }
    paging::flush();
    for number in foreign {
        for offset in [0, 0x6000, 0x4000_0000] {
            let address = slot(number) + offset;
            let event = load(address).event();
            event.is(PF, 0, code::load().start)?;
            equal("CR2", event.cr2, address)?;
            let trap = Start::of(user::code::load()).with(|r| r.rbx = address).run();
            trap.is(PF, pf::USER, user::code::load().start)?;
            let trap = Start::of(user::code::store()).with(|r| r.rbx = address).run();
            trap.is(PF, pf::USER | pf::WRITE, user::code::store().start)?;
            let trap = Start::of(user::code::jump()).with(|r| r.rbx = address).run();
            trap.is(PF, pf::USER | pf::FETCH, address)?;
        }
    }
    let seen = Counters::of(|| load(slot(257)));
    seen.exactly(&[(Exit::PageFaultReflected, 1)])?;
    holds("no entry of L1's was taken for the guest's", abi::pvcs().address() != 0)
}
