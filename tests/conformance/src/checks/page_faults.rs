//! Page faults that the guest's tables ask for: error codes, CR2, A and D bits, cost.

use super::{Group, Setting, check};
use crate::{
    counters::{self, Counters, Exit, counted},
    event::Event,
    kernel,
    paging::{self, A, D, NX, P, TABLE, U, W},
    probe::Probe,
    tap::{Case, Verdict, equal},
    user::{self, Start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::event::{BP, PF, pf};

pub const GROUP: Group = Group {
    name: "page_fault",
    setting: Setting::Anywhere,
    checks: &[
        check("user_error_codes", "EVT-8 MMU-3", user_error_codes),
        check("kernel_error_codes", "EVT-8 MMU-3", kernel_error_codes),
        check("cost", "CNT-2 CNT-3", cost),
        check("accessed_and_dirty", "MMU-5", accessed_and_dirty),
        check("accessed_by_kernel", "MMU-5", accessed_by_kernel),
        check("upper_level_permissions", "MMU-3 EVT-8", upper_level_permissions),
        check("reserved_bits", "MMU-4 EVT-8", reserved_bits),
    ],
};

/// What code does to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Execute,
}

use Access::{Execute, Read, Write};

impl Access {
    const ALL: [Self; 3] = [Read, Write, Execute];

    /// The bits of an error code that say so.
    const fn bits(self) -> u64 {
        match self {
            Read => 0,
            Write => pf::WRITE,
            Execute => pf::FETCH,
        }
    }
}

/// An address whose tables are nobody else's, the root's entry included.
const ADDRESS: u64 = 0x92_3456_7000;

/// What a write stores: INT3 instructions, so that the page can still be executed.
pub const STORED: u64 = 0xcccc_cccc_cccc_cccc;

/// Accesses `address` in user mode; the #PF, if there is one. What is executed there is INT3.
pub fn user_access(access: Access, address: u64) -> Option<Event> {
    let code = match access {
        Read => user::code::load(),
        Write => user::code::store(),
        Execute => user::code::jump(),
    };
    let trap = Start::of(code).with(|r| (r.rax, r.rbx) = (STORED, address)).run();
    trap.vector.filter(|&vector| vector != BP).map(|_| trap.event)
}

/// The same in supervisor mode.
pub fn kernel_access(access: Access, address: u64) -> Option<Event> {
    let code = match access {
        Read => kernel::code::load(),
        Write => kernel::code::store(),
        Execute => kernel::code::jump(),
    };
    let done = Probe::of(code).with(|r| (r.rax, r.rbx) = (STORED, address)).run();
    done.event.filter(|event| event.vector() != BP)
}

/// Judges how an access ended: `None` is success.
pub fn ended(event: Option<Event>, address: u64, error: Option<u64>) -> Verdict {
    let found = event.map_or(1 << 32, |event| u64::from(event.vector()) << 16 | event.error);
    let expected = error.map_or(1 << 32, |error| u64::from(PF) << 16 | error);
    equal("vector << 16 | error code (1 << 32: none)", found, expected)?;
    event.map_or(Ok(()), |event| equal("CR2", event.cr2, address))
}

/// Bit 51 of an address: more than this CPU has.
const RESERVED: u64 = 1 << 51;

/// A page with `flags` that holds INT3 instructions and nothing else; an address in it.
fn page(index: usize, flags: u64) -> u64 {
    for word in 0..512 {
        paging::word(paging::frame(index) + 8 * word).store(STORED, Relaxed);
    }
    paging::set_area(index, if flags == 0 { 0 } else { paging::frame(index) | flags }) + 0x128
}

/// For each kind of page: what read, write and execution end in; `None` is success.
type Row = (&'static str, u64, [Option<u64>; 3]);

fn judge(rows: &[Row], access_by: fn(Access, u64) -> Option<Event>) -> Verdict {
    for (index, (name, flags, expected)) in rows.iter().enumerate() {
        for (access, error) in Access::ALL.into_iter().zip(expected) {
            // A fresh page each time: nothing is cached for it.
            let address = page(index, *flags);
            let error = error.map(|error| error | access.bits());
            ended(access_by(access, address), address, error).case(name)?;
        }
    }
    Ok(())
}

/// Every kind of access of user mode to every kind of page; U is set in the code.
fn user_error_codes() -> Verdict {
    const ABSENT: Option<u64> = Some(pf::USER);
    const DENIED: Option<u64> = Some(pf::USER | pf::PRESENT);
    const BROKEN: Option<u64> = Some(pf::USER | pf::PRESENT | pf::RESERVED);
    judge(
        &[
            ("absent", 0, [ABSENT; 3]),
            ("read-only", P | U, [None, DENIED, None]),
            ("read-write", P | W | U, [None; 3]),
            ("not executable", P | W | U | NX, [None, None, DENIED]),
            ("kernel", P | W, [DENIED; 3]),
            ("kernel, read-only", P | NX, [DENIED; 3]),
            ("reserved bit", P | W | U | RESERVED, [BROKEN; 3]),
            ("absent, other bits set", W | U | RESERVED, [ABSENT; 3]),
        ],
        user_access,
    )
}

/// Supervisor mode: U is clear, write protection holds, user pages are not executed (SMEP).
fn kernel_error_codes() -> Verdict {
    const ABSENT: Option<u64> = Some(0);
    const DENIED: Option<u64> = Some(pf::PRESENT);
    const BROKEN: Option<u64> = Some(pf::PRESENT | pf::RESERVED);
    judge(
        &[
            ("absent", 0, [ABSENT; 3]),
            ("kernel", P | W, [None; 3]),
            ("kernel, read-only", P, [None, DENIED, None]),
            ("kernel, not executable", P | W | NX, [None, None, DENIED]),
            ("user", P | W | U, [None, None, DENIED]),
            ("user, read-only", P | U, [None, DENIED, DENIED]),
            ("reserved bit", P | W | RESERVED, [BROKEN; 3]),
        ],
        kernel_access,
    )
}

/// A fault that is the guest's own costs one exit and one event, nothing else.
fn cost() -> Verdict {
    counters::needed()?;
    let user = Counters::of(|| user_access(Read, paging::area(9)));
    user.exactly(&[(Exit::PageFaultReflected, 1), (Exit::PageFaultFilled, 0)])?;
    counted("events", user.events, 1)?;
    counted("direct switches", user.direct_switches, 1)?;
    let kernel = Counters::of(|| kernel_access(Write, paging::area(9)));
    kernel.exactly(&[(Exit::PageFaultReflected, 1), (Exit::PageFaultFilled, 0)])?;
    counted("events", kernel.events, 1)
}

fn bits(address: u64, level: u32) -> u64 {
    paging::entry(0, address, level).load(Relaxed) & (A | D)
}

/// A is set on the whole path by any access, D in the leaf by a write; a refused access sets no D.
fn accessed_and_dirty() -> Verdict {
    for (access, leaf) in [(Read, A), (Execute, A), (Write, A | D)] {
        paging::reset();
        paging::map(0, ADDRESS, paging::frame(0) | P | W | U, 1);
        for level in 2..=4 {
            paging::entry(0, ADDRESS, level).fetch_and(!A, Relaxed);
        }
        paging::flush();
        equal("before", bits(ADDRESS, 1), 0)?;
        ended(user_access(access, ADDRESS), ADDRESS, None)?;
        equal("A and D of the leaf", bits(ADDRESS, 1), leaf)?;
        for level in 2..=4 {
            equal("A and D above it", bits(ADDRESS, level), A)?;
        }
    }
    // A clean page becomes dirty by its first write, even if it was read before.
    paging::entry(0, ADDRESS, 1).fetch_and(!D, Relaxed);
    paging::invlpg(ADDRESS);
    user_access(Read, ADDRESS);
    equal("read again", bits(ADDRESS, 1), A)?;
    user_access(Write, ADDRESS);
    equal("written", bits(ADDRESS, 1), A | D)?;
    let read_only = page(3, P | U);
    user_access(Write, read_only);
    equal("refused write", bits(read_only, 1) & D, 0)
}

/// The kernel's accesses set them just so, and through user pages too.
fn accessed_by_kernel() -> Verdict {
    for flags in [P | W, P | W | U] {
        let address = page(0, flags);
        kernel_access(Read, address);
        equal("read", bits(address, 1), A)?;
        kernel_access(Write, address);
        equal("written", bits(address, 1), A | D)?;
        // Both are kept, and a second write is free.
        let seen = Counters::of(|| kernel_access(Write, address));
        seen.exactly(&[(Exit::PageFaultFilled, 0)])?;
    }
    Ok(())
}

/// W, U and NX of every level count.
fn upper_level_permissions() -> Verdict {
    for level in 2..=4 {
        for (name, flags, access, error) in [
            ("W clear", TABLE & !W, Write, Some(pf::USER | pf::PRESENT | pf::WRITE)),
            ("W clear, read", TABLE & !W, Read, None),
            ("U clear", TABLE & !U, Read, Some(pf::USER | pf::PRESENT)),
            ("NX", TABLE | NX, Execute, Some(pf::USER | pf::PRESENT | pf::FETCH)),
            ("NX, write", TABLE | NX, Write, None),
            ("P clear", TABLE & !P, Read, Some(pf::USER)),
        ] {
            paging::reset();
            paging::map(0, ADDRESS, paging::frame(0) | P | W | U, 1);
            paging::word(paging::frame(0)).store(0xcc, Relaxed);
            let entry = paging::entry(0, ADDRESS, level);
            entry.store(entry.load(Relaxed) & !TABLE | flags, Relaxed);
            ended(user_access(access, ADDRESS), ADDRESS, error).case(name)?;
            // The same for supervisor mode, where U does not matter.
            let error = error.map(|error| error & !pf::USER).filter(|_| flags & U != 0);
            if access != Execute {
                ended(kernel_access(access, ADDRESS), ADDRESS, error).case(name)?;
            }
        }
    }
    Ok(())
}

/// Reserved bits of upper levels: PS in the root, address bits that do not exist.
fn reserved_bits() -> Verdict {
    let broken = pf::USER | pf::PRESENT | pf::RESERVED;
    for (level, bit) in [(4, paging::PS), (4, RESERVED), (3, RESERVED), (2, RESERVED)] {
        paging::reset();
        paging::map(0, ADDRESS, paging::frame(0) | P | W | U, 1);
        paging::entry(0, ADDRESS, level).fetch_or(bit, Relaxed);
        ended(user_access(Read, ADDRESS), ADDRESS, Some(broken))?;
        ended(kernel_access(Write, ADDRESS), ADDRESS, Some(broken & !pf::USER | pf::WRITE))?;
        paging::entry(0, ADDRESS, level).fetch_and(!bit, Relaxed);
        ended(user_access(Read, ADDRESS), ADDRESS, None)?;
    }
    Ok(())
}
