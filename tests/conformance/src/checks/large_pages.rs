//! Large pages of the guest's, 2 MiB and 1 GiB.

use super::{
    Group, Setting, check,
    page_faults::{
        Access::{Execute, Read, Write},
        STORED, ended, kernel_access, user_access,
    },
};
use crate::{
    abi,
    counters::{self, Counters, Exit, counted_within},
    kernel,
    paging::{self, A, D, FRAMES, NX, P, PS, U, W},
    probe::Probe,
    tap::{Case, Verdict, equal, skip},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::event::pf;

pub const GROUP: Group = Group {
    name: "large_page",
    setting: Setting::Anywhere,
    checks: &[
        check("contents", "MMU-4", contents),
        check("permissions", "MMU-4 MMU-3", permissions),
        check("accessed_and_dirty", "MMU-4 MMU-5", accessed_and_dirty),
        check("reserved_bits", "MMU-4", reserved_bits),
        check("changes", "MMU-4 MMU-6", changes),
        check("split_and_merged", "MMU-4 MMU-6", split_and_merged),
        check("cost", "CNT-4", cost),
        check("gigabyte", "MMU-4 MMU-8", gigabyte),
    ],
};

/// 2 MiB-aligned, below a root entry of its own.
const LARGE: u64 = 0x92_3460_0000;

fn map(flags: u64) -> &'static core::sync::atomic::AtomicU64 {
    paging::reset();
    paging::map(0, LARGE, FRAMES | PS | flags, 2)
}

fn load(address: u64) -> u64 {
    Probe::of(kernel::code::load()).with(|r| r.rbx = address).run().registers.rax
}

/// Each 4 KiB of it is the right one, and stores arrive.
fn contents() -> Verdict {
    map(P | W | U);
    for index in [0, 1, 17, 100, 127] {
        paging::word(paging::frame(index)).store(0x7000 + index as u64, Relaxed);
        let address = LARGE + 4096 * index as u64;
        equal("page", load(address), 0x7000 + index as u64)?;
        ended(user_access(Write, address + 8), address + 8, None)?;
        equal("stored", paging::word(paging::frame(index) + 8).load(Relaxed), STORED)?;
    }
    // The far end: tables lie there, so it is only read.
    equal("last page", load(LARGE + 0x1f_f000), paging::word(FRAMES + 0x1f_f000).load(Relaxed))
}

/// W, U and NX count as in a small page, and so does SMEP.
fn permissions() -> Verdict {
    const PRESENT: u64 = pf::PRESENT;
    paging::word(paging::frame(9)).store(0xcccc, Relaxed);
    let at = LARGE + 0x9000;
    for (name, flags, user, kernel) in [
        ("all", P | W | U, [None; 3], [None, None, Some(PRESENT)]),
        ("read-only", P | U, [None, Some(PRESENT), None], [None, Some(PRESENT), Some(PRESENT)]),
        ("NX", P | W | U | NX, [None, None, Some(PRESENT)], [None, None, Some(PRESENT)]),
        ("kernel", P | W, [Some(PRESENT); 3], [None; 3]),
        ("kernel NX", P | NX, [Some(PRESENT); 3], [None, Some(PRESENT), Some(PRESENT)]),
        ("absent", 0, [Some(0); 3], [Some(0); 3]),
    ] {
        for (index, access) in [Read, Write, Execute].into_iter().enumerate() {
            let bits = [0, pf::WRITE, pf::FETCH][index];
            map(flags);
            paging::word(paging::frame(9)).store(0xcccc, Relaxed);
            let error = user[index].map(|error| error | bits | pf::USER);
            ended(user_access(access, at), at, error).case(name)?;
            map(flags);
            paging::word(paging::frame(9)).store(0xcccc, Relaxed);
            let error = kernel[index].map(|error| error | bits);
            ended(kernel_access(access, at), at, error).case(name)?;
        }
    }
    Ok(())
}

/// A and D are set in the one entry there is.
fn accessed_and_dirty() -> Verdict {
    let entry = map(P | W | U);
    equal("before", entry.load(Relaxed) & (A | D), 0)?;
    user_access(Read, LARGE);
    equal("after a read", entry.load(Relaxed) & (A | D), A)?;
    user_access(Write, LARGE + 0x5000);
    equal("after a write", entry.load(Relaxed) & (A | D), A | D)?;
    entry.fetch_and(!(A | D), Relaxed);
    paging::flush();
    kernel_access(Write, LARGE + 0x5000);
    equal("after a write of the kernel's", entry.load(Relaxed) & (A | D), A | D)
}

/// Address bits below 2 MiB are reserved, but for the one of the memory type.
fn reserved_bits() -> Verdict {
    let broken = Some(pf::USER | pf::PRESENT | pf::RESERVED);
    for bit in [13, 15, 20, 51] {
        map(P | W | U | 1 << bit);
        ended(user_access(Read, LARGE), LARGE, broken)?;
    }
    map(P | W | U | 1 << 12);
    ended(user_access(Read, LARGE), LARGE, None)
}

/// Rights taken away and a frame that moved show after a flush.
fn changes() -> Verdict {
    let entry = map(P | W | U);
    user_access(Write, LARGE + 0x3000);
    entry.fetch_and(!W, Relaxed);
    paging::invlpg(LARGE + 0x3000);
    let denied = Some(pf::USER | pf::PRESENT | pf::WRITE);
    ended(user_access(Write, LARGE + 0x3000), LARGE + 0x3000, denied)?;
    entry.fetch_or(W, Relaxed);
    ended(user_access(Write, LARGE + 0x3000), LARGE + 0x3000, None)?;
    // The 2 MiB before check memory hold nothing but zeros.
    paging::word(paging::frame(3)).store(0x55, Relaxed);
    equal("before", load(LARGE + 0x3000), 0x55)?;
    entry.store((FRAMES - 0x20_0000) | PS | P | W | U, Relaxed);
    paging::flush();
    equal("moved", load(LARGE + 0x3000), 0)?;
    entry.store(0, Relaxed);
    paging::invlpg(LARGE);
    ended(user_access(Read, LARGE + 0x3000), LARGE + 0x3000, Some(pf::USER))
}

/// A large page becomes a table of small ones, and a large page again.
fn split_and_merged() -> Verdict {
    let entry = map(P | W | U);
    for (index, value) in [(3, 0x33), (4, 0x44)] {
        paging::word(paging::frame(index)).store(value, Relaxed);
    }
    equal("large", load(LARGE + 0x3000), 0x33)?;
    let large = entry.swap(0, Relaxed);
    // In the table, page 3 is frame 4.
    paging::map(0, LARGE + 0x3000, paging::frame(4) | P | W | U, 1);
    paging::flush();
    equal("small", load(LARGE + 0x3000), 0x44)?;
    ended(user_access(Read, LARGE + 0x4000), LARGE + 0x4000, Some(pf::USER))?;
    entry.store(large, Relaxed);
    paging::flush();
    equal("large again", load(LARGE + 0x3000), 0x33)?;
    equal("all of it", load(LARGE + 0x4000), 0x44)
}

/// At most one exit for each 4 KiB that is touched, and none the second time.
fn cost() -> Verdict {
    counters::needed()?;
    map(P | W | U | A | D);
    let touch = || {
        for page in 0..32 {
            load(LARGE + 4096 * page);
        }
    };
    let first = Counters::of(touch);
    counted_within("exits", first.exits, 1, 32)?;
    Counters::of(touch).exactly(&[(Exit::PageFaultFilled, 0)])
}

/// 1 GiB pages, where they are offered: RAM where it is, nobody behind it.
fn gigabyte() -> Verdict {
    const HUGE: u64 = 0x92_0000_0000;
    if abi::cpuid(0x8000_0001, 0)[3] >> 26 & 1 == 0 {
        return skip("this CPU has no 1 GiB pages");
    }
    let entry = paging::map(0, HUGE, PS | P | W | U, 3);
    paging::word(paging::frame(2)).store(0x1234, Relaxed);
    let at = HUGE + paging::frame(2);
    equal("RAM", load(at), 0x1234)?;
    equal("A and D", entry.load(Relaxed) & (A | D), A)?;
    ended(user_access(Write, at), at, None)?;
    equal("stored", paging::word(paging::frame(2)).load(Relaxed), STORED)?;
    equal("A and D", entry.load(Relaxed) & (A | D), A | D)?;
    equal("behind RAM", load(HUGE + 0x3ff0_0000), u64::MAX)?;
    entry.fetch_and(!U, Relaxed);
    paging::flush();
    ended(user_access(Read, at), at, Some(pf::USER | pf::PRESENT))?;
    paging::reset();
    paging::map(0, HUGE, 1 << 14 | PS | P | W | U, 3);
    ended(user_access(Read, at), at, Some(pf::USER | pf::PRESENT | pf::RESERVED))
}
