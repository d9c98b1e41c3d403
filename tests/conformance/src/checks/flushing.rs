//! The flush contract: what takes effect at once, and what after each kind of flush.

use super::{
    Group, Setting, check,
    page_faults::{
        Access::{self, Execute, Read, Write},
        ended, kernel_access, user_access,
    },
};
use crate::{
    abi, kernel,
    paging::{self, A, D, NX, P, U, W},
    privileged,
    probe::Probe,
    tap::{Case, Verdict, equal},
    user::{self, Start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{event::pf, hypercall as nr};

pub const GROUP: Group = Group {
    name: "flush",
    setting: Setting::Anywhere,
    checks: &[
        check("not_needed", "MMU-6", not_needed),
        check("upper_levels_not_needed", "MMU-6", upper_levels_not_needed),
        check("taken_away", "MMU-6 HC-3 HC-6 HC-7 HC-8 INS-6 INS-7 INS-14", taken_away),
        check("moved", "MMU-6 HC-3 HC-6 HC-7 HC-8 INS-6 INS-7 INS-14", moved),
        check("upper_levels", "MMU-6 HC-3 HC-6 HC-7 HC-8 INS-6 INS-7 INS-14", upper_levels),
        check("accessed_and_dirty", "MMU-5 MMU-6", accessed_and_dirty),
        check("other_space", "MMU-6 HC-3", other_space),
        check("flush_all_spaces", "MMU-6 HC-6", flush_all_spaces),
        check("one_address_in_all_spaces", "MMU-6 HC-8", one_address_in_all_spaces),
        check("upper_half_in_all_spaces", "MMU-6 HC-8", upper_half_in_all_spaces),
    ],
};

/// An address of its own in the lower half; the root's entry is shared with nothing.
const ADDRESS: u64 = 0x92_3456_7000;

/// A way to flush an address, at least.
type Flush = (&'static str, fn(u64));

/// Every way to flush `address` in the current space.
const FLUSHES: [Flush; 8] = [
    ("TLB_INVLPG", paging::invlpg),
    ("INVLPG", |address| {
        Probe::of(privileged::kernel::code::invlpg()).with(|r| r.rbx = address).run();
    }),
    ("TLB_FLUSH", |_| {
        abi::call(nr::TLB_FLUSH, [0; 4]);
    }),
    ("TLB_FLUSH_CURRENT", |_| paging::flush()),
    ("LOAD_PGTBL", |_| paging::load(0)),
    ("MOV CR3", |_| {
        let code = privileged::kernel::code::write_cr3();
        Probe::of(code).with(|r| r.rax = paging::cr3(0)).run();
    }),
    ("MOV CR3 there and back", |_| {
        let code = privileged::kernel::code::write_cr3();
        Probe::of(code).with(|r| r.rax = paging::cr3(1)).run();
        Probe::of(code).with(|r| r.rax = paging::cr3(0)).run();
    }),
    ("MOV CR4 with another PGE", |_| {
        const PGE: u64 = 1 << 7;
        let code = privileged::kernel::code::write_cr4();
        let before = Probe::of(privileged::kernel::code::read_cr4()).run().registers.rax;
        Probe::of(code).with(|r| r.rax = before ^ PGE).run();
        Probe::of(code).with(|r| r.rax = before).run();
    }),
];

fn frame(index: usize) -> u64 {
    for word in [0, 8] {
        paging::word(paging::frame(index) + word).store(0xcc00 + index as u64, Relaxed);
    }
    paging::word(paging::frame(index)).store(0xcccc_cccc_cccc_cccc, Relaxed);
    paging::frame(index)
}

/// Starts with `flags` at ADDRESS in the first space; its tables are new.
fn fresh(flags: u64) {
    paging::reset();
    paging::map(0, ADDRESS, frame(0) | flags, 1);
}

fn leaf() -> &'static core::sync::atomic::AtomicU64 {
    paging::entry(0, ADDRESS, 1)
}

fn by_user(access: Access, error: Option<u64>) -> Verdict {
    ended(user_access(access, ADDRESS), ADDRESS, error)
}

fn by_kernel(access: Access, error: Option<u64>) -> Verdict {
    ended(kernel_access(access, ADDRESS), ADDRESS, error)
}

/// More rights, or a mapping where none was, take effect without a flush.
fn not_needed() -> Verdict {
    let user = |bits| Some(pf::USER | bits);
    fresh(0);
    by_user(Read, user(0))?;
    leaf().store(paging::frame(0) | P | U, Relaxed);
    by_user(Read, None).case("absent to present")?;
    by_user(Write, user(pf::PRESENT | pf::WRITE))?;
    leaf().fetch_or(W, Relaxed);
    by_user(Write, None).case("read-only to writable")?;

    fresh(P | W | NX);
    by_kernel(Write, None)?;
    by_user(Read, user(pf::PRESENT))?;
    leaf().fetch_or(U, Relaxed);
    by_user(Write, None).case("kernel to user")?;
    by_user(Execute, user(pf::PRESENT | pf::FETCH))?;
    leaf().fetch_and(!NX, Relaxed);
    by_user(Execute, None).case("executable")?;

    fresh(P);
    by_kernel(Read, None)?;
    by_kernel(Write, Some(pf::PRESENT | pf::WRITE))?;
    leaf().fetch_or(W, Relaxed);
    by_kernel(Write, None).case("writable for the kernel")
}

/// The same for entries above the leaf.
fn upper_levels_not_needed() -> Verdict {
    for level in 2..=4 {
        for (name, bits, access, error) in [
            ("absent to present", P, Read, pf::USER),
            ("writable", W, Write, pf::USER | pf::PRESENT | pf::WRITE),
            ("user", U, Read, pf::USER | pf::PRESENT),
        ] {
            fresh(P | W | U);
            let entry = paging::entry(0, ADDRESS, level);
            entry.fetch_and(!bits, Relaxed);
            by_user(access, Some(error)).case(name)?;
            entry.fetch_or(bits, Relaxed);
            by_user(access, None).case(name)?;
        }
    }
    Ok(())
}

/// Rights that are taken away are gone after any flush.
fn taken_away() -> Verdict {
    for (name, flush) in FLUSHES {
        for (bits, set, access, error) in [
            (P, false, Read, pf::USER),
            (W, false, Write, pf::USER | pf::PRESENT | pf::WRITE),
            (U, false, Read, pf::USER | pf::PRESENT),
            (NX, true, Execute, pf::USER | pf::PRESENT | pf::FETCH),
        ] {
            fresh(P | W | U);
            for access in [Read, Write, Execute] {
                by_user(access, None).case(name)?;
            }
            if set {
                leaf().fetch_or(bits, Relaxed);
            } else {
                leaf().fetch_and(!bits, Relaxed);
            }
            flush(ADDRESS);
            by_user(access, Some(error)).case(name)?;
        }
        // And for the kernel.
        fresh(P | W);
        by_kernel(Write, None).case(name)?;
        leaf().fetch_and(!W, Relaxed);
        flush(ADDRESS);
        by_kernel(Write, Some(pf::PRESENT | pf::WRITE)).case(name)?;
        leaf().store(0, Relaxed);
        flush(ADDRESS);
        by_kernel(Read, Some(0)).case(name)?;
    }
    Ok(())
}

/// What each mode reads at ADDRESS + 8: the number of the frame.
fn seen() -> [u64; 2] {
    let user = Start::of(user::code::load()).with(|r| r.rbx = ADDRESS + 8).run();
    let kernel = Probe::of(kernel::code::load()).with(|r| r.rbx = ADDRESS + 8).run();
    [user.registers.rax & 0xff, kernel.registers.rax & 0xff]
}

fn sees(index: usize) -> Verdict {
    for found in seen() {
        equal("frame", found, index as u64)?;
    }
    Ok(())
}

/// A page that moved is found at its new place after any flush, by both modes.
fn moved() -> Verdict {
    for (name, flush) in FLUSHES {
        fresh(P | W | U);
        sees(0).case(name)?;
        leaf().store(frame(1) | P | W | U, Relaxed);
        flush(ADDRESS);
        sees(1).case(name)?;
    }
    Ok(())
}

/// So are tables that moved, and those that went are gone.
fn upper_levels() -> Verdict {
    for (name, flush) in FLUSHES {
        for level in 2..=4 {
            fresh(P | W | U);
            // A second branch for the same address, below a slot nobody uses.
            let other = ADDRESS ^ 1 << (12 + 9 * (level - 1));
            paging::map(0, other, frame(2) | P | W | U, 1);
            sees(0).case(name)?;
            let entry = paging::entry(0, ADDRESS, level);
            entry.store(paging::entry(0, other, level).load(Relaxed), Relaxed);
            flush(ADDRESS);
            sees(2).case(name)?;
            entry.store(0, Relaxed);
            flush(ADDRESS);
            by_user(Read, Some(pf::USER)).case(name)?;
            by_kernel(Read, Some(0)).case(name)?;
        }
    }
    Ok(())
}

/// A and D that the guest has cleared are set again by the next access after a flush.
fn accessed_and_dirty() -> Verdict {
    for (name, flush) in FLUSHES {
        fresh(P | W | U);
        by_user(Write, None)?;
        leaf().fetch_and(!(A | D), Relaxed);
        flush(ADDRESS);
        by_user(Read, None)?;
        equal("after a read", leaf().load(Relaxed) & (A | D), A).case(name)?;
        by_user(Write, None)?;
        equal("after a write", leaf().load(Relaxed) & (A | D), A | D).case(name)?;
        leaf().fetch_and(!D, Relaxed);
        flush(ADDRESS);
        by_kernel(Write, None)?;
        equal("after a write of the kernel's", leaf().load(Relaxed) & D, D).case(name)?;
    }
    Ok(())
}

/// A page of both spaces at the same address, used in both.
fn both_spaces(address: u64) -> Verdict {
    paging::reset();
    for space in [0, 1] {
        paging::map(space, address, frame(space) | P | W | U | A | D, 1);
        paging::load(space);
        sees_at(address, space)?;
    }
    paging::load(0);
    sees_at(address, 0)?;
    // Without flushes and changes, translations of both may be kept.
    for space in [1, 0, 1, 0] {
        paging::load_cr3(0, paging::cr3(space));
        sees_at(address, space)?;
    }
    Ok(())
}

fn sees_at(address: u64, index: usize) -> Verdict {
    let kernel = Probe::of(kernel::code::load()).with(|r| r.rbx = address + 8).run();
    equal("frame", kernel.registers.rax & 0xff, index as u64)
}

/// A space that was changed while another was loaded: a load with the flush flag sees it.
fn other_space() -> Verdict {
    both_spaces(ADDRESS)?;
    paging::entry(1, ADDRESS, 1).store(frame(2) | P | W | U, Relaxed);
    paging::load(1);
    let changed = sees_at(ADDRESS, 2);
    paging::load(0);
    changed?;
    sees_at(ADDRESS, 0)
}

/// TLB_FLUSH covers every space, so that a load without the flush flag will do.
fn flush_all_spaces() -> Verdict {
    both_spaces(ADDRESS)?;
    paging::entry(1, ADDRESS, 1).store(frame(2) | P | W | U, Relaxed);
    abi::call(nr::TLB_FLUSH, [0; 4]);
    paging::load_cr3(0, paging::cr3(1));
    let changed = sees_at(ADDRESS, 2);
    paging::load(0);
    changed
}

/// So does TLB_INVLPG for its one address.
fn one_address_in_all_spaces() -> Verdict {
    both_spaces(ADDRESS)?;
    paging::entry(1, ADDRESS, 1).store(frame(2) | P | W | U, Relaxed);
    paging::invlpg(ADDRESS);
    paging::load_cr3(0, paging::cr3(1));
    let changed = sees_at(ADDRESS, 2);
    paging::load(0);
    changed
}

/// Kernels share the upper half: one INVLPG of its addresses is enough.
fn upper_half_in_all_spaces() -> Verdict {
    const KERNEL: u64 = 0xffff_ec12_3456_7000;
    paging::reset();
    paging::map(0, KERNEL, frame(0) | P | W | A | D, 1);
    let shared = paging::entry(0, KERNEL, 4).load(Relaxed);
    paging::entry(1, KERNEL, 4).store(shared, Relaxed);
    for space in [1, 0] {
        paging::load(space);
        sees_at(KERNEL, 0)?;
    }
    paging::entry(0, KERNEL, 1).store(frame(2) | P | W, Relaxed);
    paging::invlpg(KERNEL);
    sees_at(KERNEL, 2)?;
    paging::load_cr3(0, paging::cr3(1));
    let other = sees_at(KERNEL, 2);
    paging::load(0);
    other
}
