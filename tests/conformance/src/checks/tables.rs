//! Unusual page tables: shared, self-mapping, aliased, pointing to odd places, random.

use super::{
    Group, Setting, check,
    page_faults::{
        Access::{Read, Write},
        ended, kernel_access, user_access,
    },
};
use crate::{
    abi::pvcs,
    extension, kernel,
    paging::{self, A, D, NX, P, TABLE, U, W},
    probe::Probe,
    tap::{Verdict, equal, holds},
    user::{self, Start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    event::{PF, pf},
    pvcs::offset,
};

pub const GROUP: Group = Group {
    name: "tables",
    setting: Setting::Anywhere,
    checks: &[
        check("shared_leaf_table", "MMU-3 MMU-6", shared_leaf_table),
        check("shared_by_spaces", "MMU-6", shared_by_spaces),
        check("self_mapping", "MMU-3 MMU-5", self_mapping),
        check("user_writable_table", "MMU-3", user_writable_table),
        check("table_at_two_levels", "MMU-6", table_at_two_levels),
        check("outside_ram", "MMU-8", outside_ram),
        check("alias_of_the_pvcs", "PVCS-3", alias_of_the_pvcs),
        check("table_in_the_pvcs", "PVCS-1", table_in_the_pvcs),
        check("many_spaces", "HC-3", many_spaces),
        check("random", "MMU-4 MMU-8", random),
    ],
};

const ADDRESS: u64 = 0x92_3456_7000;
const LARGE: u64 = 1 << 21;

fn load(address: u64) -> u64 {
    Probe::of(kernel::code::load()).with(|r| r.rbx = address).run().registers.rax
}

fn store(address: u64, value: u64) -> Verdict {
    Probe::of(kernel::code::store()).with(|r| (r.rbx, r.rax) = (address, value)).run().finished()
}

fn numbered(index: usize) -> u64 {
    paging::word(paging::frame(index)).store(0x100 + index as u64, Relaxed);
    paging::frame(index)
}

/// One leaf table below two directory entries: a change shows at both after their flushes.
fn shared_leaf_table() -> Verdict {
    paging::map(0, ADDRESS, numbered(0) | P | W | U, 1);
    let link = paging::entry(0, ADDRESS, 2).load(Relaxed);
    let alias = ADDRESS + LARGE;
    paging::entry(0, alias, 2).store(link, Relaxed);
    equal("here", load(ADDRESS), 0x100)?;
    equal("there", load(alias), 0x100)?;
    paging::entry(0, ADDRESS, 1).store(numbered(1) | P | W | U, Relaxed);
    paging::invlpg(ADDRESS);
    paging::invlpg(alias);
    equal("here", load(ADDRESS), 0x101)?;
    equal("there", load(alias), 0x101)?;
    // Different rights above the same table stay apart.
    paging::entry(0, alias, 2).store(link & !W, Relaxed);
    paging::invlpg(alias);
    ended(user_access(Write, alias), alias, Some(pf::USER | pf::PRESENT | pf::WRITE))?;
    ended(user_access(Write, ADDRESS), ADDRESS, None)?;
    paging::entry(0, alias, 2).store(link & !U, Relaxed);
    paging::invlpg(alias);
    ended(user_access(Read, alias), alias, Some(pf::USER | pf::PRESENT))?;
    ended(user_access(Read, ADDRESS), ADDRESS, None)?;
    ended(kernel_access(Write, alias), alias, None)
}

/// Two spaces with a branch in common see the same after a flush in each.
fn shared_by_spaces() -> Verdict {
    paging::map(0, ADDRESS, numbered(0) | P | W | U, 1);
    paging::entry(1, ADDRESS, 4).store(paging::entry(0, ADDRESS, 4).load(Relaxed), Relaxed);
    for space in [1, 0] {
        paging::load(space);
        equal("at first", load(ADDRESS), 0x100)?;
    }
    paging::entry(0, ADDRESS, 1).store(numbered(1) | P | W | U, Relaxed);
    for space in [0, 1] {
        paging::load(space);
        equal("after the change", load(ADDRESS), 0x101)?;
    }
    paging::load(0);
    Ok(())
}

/// Root entry `slot` leads to the root itself: the tables appear as pages.
fn self_mapped(slot: u64, address: u64) -> Verdict {
    let top = if slot >= 256 { 0xffff_0000_0000_0000 } else { 0 };
    let base = top | slot << 39;
    paging::reset();
    paging::map(0, address, numbered(0) | P | W | U | A | D, 1);
    paging::entry(0, base, 4).store(paging::cr3(0) | P | W | A | NX, Relaxed);
    let entry = base | (address >> 12 & 0xf_ffff_ffff) << 3;
    equal("the page", load(address), 0x100)?;
    equal("its entry", load(entry), paging::frame(0) | P | W | U | A | D)?;
    store(entry, numbered(1) | P | W | U)?;
    paging::invlpg(address);
    equal("after a store into the table", load(address), 0x101)?;
    holds("A is set", load(entry) & A != 0)?;
    let root = base | slot << 30 | slot << 21 | slot << 12;
    equal("the root's own entry", load(root + 8 * slot) & !(A | D), paging::cr3(0) | P | W | NX)?;
    let trap = Start::of(user::code::load()).with(|r| r.rbx = entry).run();
    trap.is(PF, pf::USER | pf::PRESENT, user::code::load().start)
}

/// A self-mapping root entry works, in either half.
fn self_mapping() -> Verdict {
    self_mapped(480, ADDRESS)?;
    self_mapped(200, ADDRESS)?;
    self_mapped(503, paging::AREA)
}

/// A guest that lets its users write a table is wrong, but only it suffers.
fn user_writable_table() -> Verdict {
    paging::map(0, ADDRESS, numbered(0) | P | W | U, 1);
    let table = paging::entry(0, ADDRESS, 2).load(Relaxed) & 0x000f_ffff_ffff_f000;
    let window = paging::set_area(0, table | P | W | U | NX);
    equal("before", load(ADDRESS), 0x100)?;
    let at = window + (ADDRESS >> 12 & 511) * 8;
    for index in [1, 2, 3] {
        let start = Start::of(user::code::store());
        let value = numbered(index) | P | W | U;
        start.with(|r| (r.rbx, r.rax) = (at, value)).run().is_syscall(user::code::store().end)?;
        paging::invlpg(ADDRESS);
        equal("after a store of the user's", load(ADDRESS), 0x100 + index as u64)?;
    }
    // Whatever it points to, it is the guest's memory or nobody's.
    for gpa in [0xfec0_0000, 1 << 36, 0x000f_ffff_f000] {
        let start = Start::of(user::code::store());
        start.with(|r| (r.rbx, r.rax) = (at, gpa | P | W | U)).run();
        paging::invlpg(ADDRESS);
        user_access(Read, ADDRESS);
    }
    extension::check_roots()
}

/// One frame is a directory here and a leaf table there.
fn table_at_two_levels() -> Verdict {
    paging::map(0, ADDRESS, numbered(0) | P | W | U | A | D, 1);
    // The directory of ADDRESS serves as a leaf table at another place: its entry for the leaf
    // table is a page there, which shows that table's entries.
    let directory = paging::entry(0, ADDRESS, 3).load(Relaxed) & 0x000f_ffff_ffff_f000;
    let place = ADDRESS + (1 << 30);
    paging::map(0, place, 0, 1);
    paging::entry(0, place, 2).store(directory | TABLE, Relaxed);
    paging::flush();
    let page = place & !0x1f_ffff | (ADDRESS >> 21 & 511) << 12;
    equal(
        "the table as a page",
        load(page + (ADDRESS >> 12 & 511) * 8),
        paging::frame(0) | P | W | U | A | D,
    )?;
    equal("the page", load(ADDRESS), 0x100)?;
    store(page + (ADDRESS >> 12 & 511) * 8, numbered(1) | P | W | U)?;
    paging::invlpg(ADDRESS);
    equal("after a store through it", load(ADDRESS), 0x101)
}

/// Entries that point to no RAM: a table there is no table, at whatever level.
fn outside_ram() -> Verdict {
    for level in 2..=4 {
        for gpa in [0xd000_0000, 0xfec0_0000, 1 << 36] {
            paging::reset();
            paging::map(0, ADDRESS, numbered(0) | P | W | U, 1);
            equal("before", load(ADDRESS), 0x100)?;
            paging::entry(0, ADDRESS, level).store(gpa | TABLE, Relaxed);
            paging::flush();
            let trap = Start::of(user::code::load()).with(|r| r.rbx = ADDRESS).run();
            equal("vector", trap.vector.unwrap_or(0).into(), PF.into())?;
            let done = Probe::of(kernel::code::store()).with(|r| r.rbx = ADDRESS).run();
            equal("vector", done.event().vector().into(), PF.into())?;
        }
    }
    Ok(())
}

/// The PVCS page may be mapped elsewhere, for users too: they then write the guest's own state.
fn alias_of_the_pvcs() -> Verdict {
    let alias = paging::set_area(0, pvcs().address() | P | W | U | NX);
    pvcs().set_word(offset::CR2, 0x1111);
    equal("CR2 through the alias", load(alias + offset::CR2 as u64), 0x1111)?;
    let start = Start::of(user::code::store());
    let trap = start.with(|r| (r.rbx, r.rax) = (alias + offset::CR2 as u64, 0x2222)).run();
    trap.is_syscall(user::code::store().end)?;
    equal("CR2 after a user's store", pvcs().word(offset::CR2), 0x2222)?;
    // The context that the next ERETU takes is what the guest's kernel wrote last.
    Start::of(user::code::syscall()).run().is_syscall(user::code::syscall().end)
}

/// A page table in the PVCS page: entries where the PVCS has no fields work like any other.
fn table_in_the_pvcs() -> Verdict {
    const INDEX: u64 = 300;
    let address = ADDRESS & !0x1f_ffff | INDEX << 12;
    paging::map(0, address, 0, 1);
    paging::entry(0, address, 2).store(pvcs().address() | TABLE, Relaxed);
    pvcs().set_word(8 * INDEX as usize, numbered(0) | P | W | U);
    paging::flush();
    let found = load(address);
    let entry = pvcs().word(8 * INDEX as usize);
    // Its first entry is event_flags, which is 0.
    let event = kernel_access(Read, address & !0x1f_ffff);
    pvcs().set_word(8 * INDEX as usize, 0);
    equal("through that table", found, 0x100)?;
    equal("A", entry & A, A)?;
    ended(event, address & !0x1f_ffff, Some(0))
}

/// A new root a hundred times over, each with a page of its own, and back to each.
fn many_spaces() -> Verdict {
    const SPACES: usize = 40;
    paging::map(0, ADDRESS, numbered(0) | P | W | U, 1);
    let mut roots = [0; SPACES];
    for (index, root) in roots.iter_mut().enumerate() {
        // The kernel's branch and a branch with one page.
        *root = paging::take_table();
        let tables = [paging::take_table(), paging::take_table(), paging::take_table()];
        let put = |table: u64, level: u32, value: u64| {
            paging::word(table + 8 * (ADDRESS >> (3 + 9 * level) & 511)).store(value, Relaxed);
        };
        paging::word(*root).store(paging::entry(0, 0, 4).load(Relaxed), Relaxed);
        put(*root, 4, tables[0] | TABLE);
        put(tables[0], 3, tables[1] | TABLE);
        put(tables[1], 2, tables[2] | TABLE);
        put(tables[2], 1, numbered(index) | P | W | U);
    }
    for round in 0..3 {
        for (index, root) in roots.iter().enumerate() {
            paging::load_cr3(round & 1, *root);
            equal("its page", load(ADDRESS), 0x100 + index as u64)?;
        }
    }
    paging::load(0);
    equal("back", load(ADDRESS), 0x100)
}

/// Tables of random bits, read at random addresses: faults, or the guest's own memory.
fn random() -> Verdict {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let tables: [u64; 6] = core::array::from_fn(|_| paging::take_table());
    for round in 0..20 {
        for &table in &tables {
            for index in 0..512 {
                // Half of the entries lead to one of these tables, so that walks go deep.
                let bits = next();
                let entry = match bits & 7 {
                    0..4 => tables[(bits >> 8) as usize % 6] | bits & (NX | 0xe67),
                    4 => bits & 0x03ff_f000 | bits & 0xfff,
                    5 => 0,
                    _ => bits,
                };
                paging::word(table + 8 * index).store(entry, Relaxed);
            }
        }
        paging::entry(0, ADDRESS, 4).store(tables[round % 6] | TABLE, Relaxed);
        paging::flush();
        for _ in 0..100 {
            let address = ADDRESS & !0x7f_ffff_ffff | next() & 0x7f_ffff_f000 | next() & 0xff8;
            let trap = Start::of(user::code::load()).with(|r| r.rbx = address).run();
            holds("a page fault or nothing", trap.vector.is_none_or(|vector| vector == PF))?;
            Probe::of(kernel::code::load()).with(|r| r.rbx = address).run();
        }
    }
    paging::entry(0, ADDRESS, 4).store(0, Relaxed);
    paging::flush();
    extension::check_roots()
}
