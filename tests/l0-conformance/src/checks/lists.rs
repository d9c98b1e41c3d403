//! Lists as such: count, place, order, repetition (spec section 4.3). MAP stands for all.

use super::{Group, check, vm::bad_lists};
use crate::{
    env::Env,
    holds,
    l0::{
        args::{self, List, With},
        lists,
    },
    l2::{
        code,
        guest::Guest,
        layout::{self, HOLE, TEST},
    },
    runtime::ram::{self, PAGE},
    same, skip,
    tap::{Case, Verdict},
};
use pv_abi::l0::{
    Exit, Features, Op, Status,
    list::{Access, MapRange},
    regs::gpr,
};

pub const GROUP: Group = Group {
    name: "lists",
    checks: &[
        check("empty", "L0-LIST-5", empty),
        check("too_long", "L0-LIST-6 L0-OP-1", too_long),
        check("misaligned", "L0-OP-1", misaligned),
        check("not_in_ram", "L0-OP-1 L0-SEC-1", not_in_ram),
        check("across_pages", "L0-LIST-1", across_pages),
        check("reserved_fields", "L0-LIST-7", reserved_fields),
        check("order_of_errors", "L0-LIST-7", order_of_errors),
        check("order_of_checks", "L0-OP-1", order_of_checks),
        check("index_of_the_first_failure", "L0-LIST-2 L0-OP-2", index_of_the_first_failure),
        check("adjoining_entries", "L0-LIST-2 L0-TLB-3", adjoining_entries),
        check("repeated_after_a_failure", "L0-LIST-4", repeated_after_a_failure),
        check("buffers_not_in_ram", "L0-LIST-6 L0-SEC-1", buffers_not_in_ram),
    ],
};

/// The operations on MapRange lists that L0 offers.
fn range_operations(env: &Env<'_>) -> impl Iterator<Item = Op> {
    let all = [Op::Map, Op::Unmap, Op::Protect, Op::Share, Op::Unshare];
    let offered = env.info.features;
    all.into_iter().filter(move |op| offered.contains(op.needs()))
}

/// All list operations about a vCPU or VM.
fn all_operations(env: &Env<'_>) -> impl Iterator<Item = Op> {
    let others = [Op::GetMsrs, Op::SetMsrs, Op::SetCpuid, Op::SetMsrPolicy];
    range_operations(env).chain(others)
}

/// Nothing is done; index is 0.
fn empty(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    for op in all_operations(env) {
        let list = List { address: ram::pages(1), count: 0 };
        let answer = env.l0.ok(op, &args::vm(0).list(list))?;
        same!(answer.index, 0, "index of an empty {op:?}");
    }
    Ok(())
}

fn too_long(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let limits = env.info.limits;
    for op in all_operations(env) {
        let limit = match op {
            Op::SetCpuid => limits.cpuid_leaves,
            Op::SetMsrPolicy => limits.msr_ranges,
            _ => limits.entries,
        };
        for count in [limit.saturating_add(1), 1 << 31, u32::MAX] {
            if count > limit {
                let list = List { address: ram::pages(1), count };
                env.l0.refuses(Status::Limit, op, &args::vm(0).list(list))?;
            }
        }
    }
    Ok(())
}

fn misaligned(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let page = ram::pages(1);
    for op in all_operations(env) {
        for offset in 1..8 {
            let list = List { address: page + offset, count: 1 };
            env.l0.refuses(Status::BadArg, op, &args::vm(0).list(list))?;
        }
    }
    Ok(())
}

fn not_in_ram(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    for op in all_operations(env) {
        for address in bad_lists(env) {
            let list = List { address: address & !7, count: 2 };
            env.l0
                .refuses(Status::NotYours, op, &args::vm(0).list(list))
                .case(format_args!("{address:#x}"))?;
        }
    }
    Ok(())
}

/// A list that starts 8 bytes before a page's end.
fn across_pages(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frames = ram::pages(64);
    let address = ram::pages(2) + PAGE - 8;
    for index in 0..64_u64 {
        let entry = lists::map(HOLE + index * PAGE, frames + index * PAGE, 1);
        ram::write(address + index * 32, &entry);
        ram::store(frames + index * PAGE, 100 + index);
    }
    // The list of 64 entries ends in the second page.
    let list = List { address, count: 64 };
    let answer = env.l0.ok(Op::Map, &args::vm(0).list(list))?;
    same!(answer.index, 64, "index");
    verify(&guest, HOLE, 64, 100)
}

/// L2 finds `first`, `first + 1`, ... at the starts of `pages` pages from `gpa` on.
pub fn verify(guest: &Guest, gpa: u64, pages: u64, first: u64) -> Verdict {
    let wrong = guest.does(
        code::verifies(),
        &[(gpr::RDI, gpa), (gpr::RCX, pages), (gpr::RBX, first), (8, PAGE), (9, 1)],
    )?;
    same!(wrong, 0, "pages of {pages} from {gpa:#x} on with another content");
    Ok(())
}

fn reserved_fields(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let frame = ram::pages(1);
    let good = lists::map(TEST.gpa, frame, 1);
    for bit in [0, 7, 31] {
        let list = lists::of(&[good, MapRange { reserved: 1 << bit, gpa: HOLE, ..good }]);
        env.l0.fails_at(1, Status::BadArg, Op::Map, &args::vm(0).list(list))?;
    }
    for op in range_operations(env).filter(|op| *op != Op::Map) {
        let entry = MapRange { reserved: 1, ..lists::unmap(TEST.gpa, 1) };
        env.l0.fails_at(0, Status::BadArg, op, &args::vm(0).list(lists::of(&[entry])))?;
    }
    Ok(())
}

/// Entries with two faults are refused for the first of the list of L0-LIST-7.
fn order_of_errors(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frame = ram::pages(1);
    guest.map(&[lists::map(HOLE, frame, 1)])?;
    let limit = u64::from(env.info.limits.range_pages);
    let outside = layout::DEVICE;
    let nowhere = env.no_ram();
    let good = lists::map(TEST.gpa, frame, 1);
    let cases = [
        ("form, then limit", MapRange { reserved: 1, pages: limit + 1, ..good }, Status::BadArg),
        ("form, then region", MapRange { gpa: outside + 1, ..good }, Status::BadArg),
        ("limit, then region", MapRange { gpa: outside, pages: limit + 1, ..good }, Status::Limit),
        ("limit, then frames", MapRange { l1: nowhere, pages: limit + 1, ..good }, Status::Limit),
        ("region, then frames", MapRange { gpa: outside, l1: nowhere, ..good }, Status::BadArg),
        ("frames, then exists", MapRange { gpa: HOLE, l1: nowhere, ..good }, Status::NotYours),
    ];
    for (name, entry, status) in cases {
        let list = lists::of(&[entry]);
        env.l0
            .fails_at(0, status, Op::Map, &args::vm(0).list(list))
            .case(format_args!("{name}"))?;
    }
    if !env.has(Features::EXEC_CONTROL) {
        let entry = MapRange { access: 3, gpa: outside, ..good };
        let list = args::vm(0).list(lists::of(&[entry]));
        env.l0.fails_at(0, Status::NotSupported, Op::Map, &list)?;
        let entry = MapRange { access: 3, pages: limit + 1, ..good };
        let list = args::vm(0).list(lists::of(&[entry]));
        env.l0.fails_at(0, Status::Limit, Op::Map, &list)?;
    }
    Ok(())
}

/// Calls with two faults are refused for the first in the order of L0-OP-1.
fn order_of_checks(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let limit = env.info.limits.entries;
    let page = ram::pages(1);
    let list = |address, count| args::vm(0).list(List { address, count });
    let nowhere = env.no_ram();
    env.l0.refuses(Status::Limit, Op::Map, &list(page + 1, limit + 1))?;
    env.l0.refuses(Status::Limit, Op::Map, &list(nowhere, limit + 1))?;
    env.l0.refuses(Status::BadArg, Op::Map, &list(nowhere + 4, 1))?;
    env.l0
        .refuses(
            Status::NoSuch,
            Op::GetMsrs,
            &args::vcpu(0, 1).list(List { address: page + 1, count: 1 }),
        )
        .or_else(|wrong| if env.info.limits.vcpus < 2 { Ok(()) } else { Err(wrong) })?;
    if env.has(Features::DIRTY_LOG) {
        // No log (a state) comes before what is wrong with the arguments.
        let bad = args::vm(0).arg(0, 1).list(List { address: nowhere + 1, count: 0 });
        env.l0.refuses(Status::BadState, Op::DirtyTake, &bad)?;
        env.l0.ok(Op::DirtyStart, &args::vm(0))?;
        env.l0.refuses(Status::BadArg, Op::DirtyTake, &bad)?;
    }
    Ok(())
}

/// Lists of several lengths whose entry 0, 1, in the middle or last is bad: what is before it is
/// done, what is behind it is not.
fn index_of_the_first_failure(env: &mut Env<'_>) -> Verdict {
    let limit = env.info.limits.entries.min(512);
    let frames = ram::pages(u64::from(limit));
    for page in 0..u64::from(limit) {
        ram::store(frames + page * PAGE, 100 + page);
    }
    for (length, bad) in
        [(1, 0), (2, 0), (2, 1), (64, 31), (limit, 1), (limit, limit / 2), (limit, limit - 1)]
    {
        let mark = ram::mark();
        let guest = Guest::new(env)?;
        let entry = |index: u32| {
            let gpa = TEST.gpa + u64::from(index) * PAGE;
            let gpa = if index == bad { gpa + 8 } else { gpa };
            lists::map(gpa, frames + u64::from(index) * PAGE, 1)
        };
        let list = lists::made(length, entry);
        let case = format_args!("entry {bad} of {length}");
        let value =
            env.l0.fails_at(bad, Status::BadArg, Op::Map, &args::vm(0).list(list)).case(case)?;
        same!(value, 0, "value, entry {bad} of {length}");
        if bad > 0 {
            verify(&guest, TEST.gpa, bad.into(), 100).case(case)?;
        }
        for behind in [bad, bad + 1, length] {
            guest.finds_nothing_at(TEST.gpa + u64::from(behind) * PAGE).case(case)?;
        }
        guest.destroy()?;
        ram::release(mark);
    }
    Ok(())
}

/// 64 entries of a page, each going on where the last ends, which L0 might take for one: a bad one
/// in their midst divides them as any other.
fn adjoining_entries(env: &mut Env<'_>) -> Verdict {
    const ENTRIES: u32 = 64;
    const BAD: u64 = 40;
    let guest = Guest::new(env)?;
    let frames = ram::pages(ENTRIES.into());
    let other = ram::pages(1);
    ram::store(other, 7);
    (0..u64::from(ENTRIES)).for_each(|page| ram::store(frames + page * PAGE, 100 + page));
    let gpa = |page: u64| TEST.gpa + page * PAGE;
    let made = |entry: &dyn Fn(u64) -> MapRange| {
        args::vm(0).list(lists::made(ENTRIES, |index| entry(index.into())))
    };
    let map = made(&|page| lists::map(gpa(page), frames + page * PAGE, 1));
    guest.map(&[lists::map(gpa(BAD), other, 1)])?;
    let value = env.l0.fails_at(BAD as u32, Status::Exists, Op::Map, &map)?;
    same!(value, gpa(BAD), "value of MAP");
    verify(&guest, gpa(0), BAD, 100)?;
    same!(guest.reads(gpa(BAD))?, 7, "the page that was there");
    guest.finds_nothing_at(gpa(BAD + 1))?;
    let narrow = made(&|page| lists::protect(gpa(page), 1, Access::READ | Access::EXECUTE));
    let value = env.l0.fails_at(BAD as u32 + 1, Status::NoSuch, Op::Protect, &narrow)?;
    same!(value, gpa(BAD + 1), "value of PROTECT");
    let exit = guest.exits(code::store(), &[(gpr::RDI, gpa(BAD)), (gpr::RAX, 8)])?;
    holds!(
        matches!(exit, Exit::Protected { .. } | Exit::Unmapped { .. }),
        "a store gave {exit:x?}"
    );
    let unmap = made(&|page| lists::unmap(gpa(page), 1));
    let last = unmap.list + 32 * BAD + 24;
    ram::store(last, 1 << 32);
    env.l0.fails_at(BAD as u32, Status::BadArg, Op::Unmap, &unmap)?;
    guest.finds_nothing_at(gpa(BAD - 1))?;
    same!(guest.reads(gpa(BAD))?, 7, "the page of the bad entry");
    ram::store(last, 0);
    env.l0.ok(Op::Unmap, &unmap)?;
    let answer = env.l0.ok(Op::Map, &map)?;
    same!(answer.index, ENTRIES, "index of MAP");
    verify(&guest, gpa(0), ENTRIES.into(), 100)
}

/// After a failure the whole list, now right, ends as if it had been done once; twice too.
fn repeated_after_a_failure(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frames = ram::pages(32);
    for page in 0..32 {
        ram::store(frames + page * PAGE, 100 + page);
    }
    let list = lists::made(32, |index| {
        let offset = u64::from(index) * PAGE;
        lists::map(TEST.gpa + offset, frames + offset, 1)
    });
    let broken = list.address + 20 * 32;
    let right = ram::load(broken);
    ram::store(broken, layout::DEVICE);
    env.l0.fails_at(20, Status::BadArg, Op::Map, &args::vm(0).list(list))?;
    ram::store(broken, right);
    for _ in 0..2 {
        let answer = env.l0.ok(Op::Map, &args::vm(0).list(list))?;
        same!(answer.index, 32, "index");
        verify(&guest, TEST.gpa, 32, 100)?;
    }
    let unmaps = lists::made(32, |index| lists::unmap(TEST.gpa + u64::from(index) * PAGE, 1));
    for _ in 0..2 {
        env.l0.ok(Op::Unmap, &args::vm(0).list(unmaps))?;
        guest.finds_nothing_at(TEST.gpa + 31 * PAGE)?;
    }
    Ok(())
}

/// What L0 must write has to be L1's RAM.
fn buffers_not_in_ram(env: &mut Env<'_>) -> Verdict {
    Guest::new(env)?;
    let bytes = env.info.limits.xsave_bytes;
    for address in bad_lists(env) {
        let buffer = |count| args::vcpu(0, 0).list(List { address: address & !7, count });
        env.l0
            .refuses(Status::NotYours, Op::GetXsave, &buffer(bytes))
            .case(format_args!("{address:#x}"))?;
        env.l0
            .refuses(Status::NotYours, Op::SetXsave, &buffer(bytes).arg(0, 3))
            .case(format_args!("{address:#x}"))?;
    }
    if !env.has(Features::DIRTY_LOG) {
        return Ok(());
    }
    env.l0.ok(Op::DirtyStart, &args::vm(0))?;
    let Some(end) = env.usable.sharp_end() else { return skip!("the end of RAM is not known") };
    for address in [env.no_ram(), end - 8, 1 << 60] {
        // 128 pages: two words.
        let take = args::vm(0).arg(1, 128).list(List { address, count: 0 });
        if env.info.limits.dirty_pages >= 128 {
            env.l0
                .refuses(Status::NotYours, Op::DirtyTake, &take)
                .case(format_args!("{address:#x}"))?;
        }
    }
    Ok(())
}
