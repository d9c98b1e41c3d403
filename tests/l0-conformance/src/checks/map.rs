//! MAP: what L2 finds where (spec section 5.3).

use super::{Group, check, lists::verify};
use crate::{
    env::Env,
    holds,
    l0::{
        args::{self, With},
        lists,
    },
    l2::{
        code,
        guest::Guest,
        layout::{self, DEVICE, HIGH, HOLE, LOW, TEST},
    },
    runtime::{
        clock,
        ram::{self, PAGE},
        smp,
    },
    same, skip,
    tap::{Case, Verdict},
};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use pv_abi::l0::{Features, Op, Status, list::MapRange, op::flags::CreateVm, regs::gpr};

pub const GROUP: Group = Group {
    name: "map",
    checks: &[
        check("batches", "L0-MAP-1 L0-LIST-2", batches),
        check("mixed_lengths", "L0-MAP-1 L0-MAP-10", mixed_lengths),
        check("same_again", "L0-MAP-2 L0-LIST-4", same_again),
        check("never_replaces", "L0-MAP-2 L0-LIST-2", never_replaces),
        check("form", "L0-MAP-1 L0-LIST-7", form),
        check("access", "L0-MAP-1 L0-LIST-7", access),
        check("huge_numbers", "L0-MAP-1 L0-SEC-3", huge_numbers),
        check("outside_regions", "L0-MAP-1 L0-REG-1", outside_regions),
        check("not_ours", "L0-MAP-1 L0-SEC-1", not_ours),
        check("holes_of_the_map", "L0-SEC-1", holes_of_the_map),
        check("too_many_pages", "L0-LIST-6", too_many_pages),
        check("frame_twice", "L0-MAP-3", frame_twice),
        check("frame_in_two_vms", "L0-MAP-3", frame_in_two_vms),
        check("no_exit", "L0-MAP-4", no_exit),
        check("both_sides_write", "L0-MAP-8", both_sides_write),
        check("above_4_gib", "L0-MAP-1", above_4_gib),
        check("while_running", "L0-MAP-7 L0-TLB-4 L0-OP-3", while_running),
        check("seen_by_another_vcpu", "L0-TLB-4", seen_by_another_vcpu),
    ],
};

fn stamp(frames: u64, pages: u64, first: u64) {
    (0..pages).for_each(|page| ram::store(frames + page * PAGE, first + page));
}

/// Lists of 1 to the limit of ranges of one page, the frames in reverse order.
fn batches(env: &mut Env<'_>) -> Verdict {
    let limit = env.info.limits.entries;
    let most = limit.min(2048);
    let frames = ram::pages(most.into());
    let guest = Guest::new(env)?;
    let mark = ram::mark();
    for count in [1, 2, 3, 7, 64, 511, 512, most] {
        let last = u64::from(count) - 1;
        for page in 0..=last {
            ram::store(frames + (last - page) * PAGE, 1000 + page);
        }
        let list = lists::made(count, |index| {
            let page = u64::from(index);
            lists::map(TEST.gpa + page * PAGE, frames + (last - page) * PAGE, 1)
        });
        let answer =
            env.l0.ok(Op::Map, &args::vm(0).list(list)).case(format_args!("{count} ranges"))?;
        same!((answer.index, answer.value), (count, 0), "index and value of {count} ranges");
        verify(&guest, TEST.gpa, count.into(), 1000).case(format_args!("{count} ranges"))?;
        guest.finds_nothing_at(TEST.gpa + u64::from(count) * PAGE)?;
        guest.unmap(TEST.gpa, 512)?;
        for start in (512..u64::from(count)).step_by(512) {
            guest.unmap(TEST.gpa + start * PAGE, 512)?;
        }
        ram::release(mark);
    }
    Ok(())
}

/// Ranges of 1, 2, 3, ... pages and one of as many as the least limit, in one list; frames at the
/// same place modulo 2 MiB and not.
fn mixed_lengths(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frames = ram::pages_at(1536, 0x20_0000);
    stamp(frames, 1536, 7);
    // Ranges of 1 to 31 pages are 496 pages.
    let small = lists::made(32, |index| match index {
        31 => lists::map(TEST.gpa + 496 * PAGE, frames + 496 * PAGE, 16),
        _ => {
            let before = u64::from(index * (index + 1) / 2) * PAGE;
            lists::map(TEST.gpa + before, frames + before, u64::from(index) + 1)
        }
    });
    env.l0.ok(Op::Map, &args::vm(0).list(small))?;
    guest.map(&[
        lists::map(TEST.gpa + 512 * PAGE, frames + 512 * PAGE, 512),
        lists::map(TEST.gpa + 1025 * PAGE, frames + 1024 * PAGE, 511),
    ])?;
    verify(&guest, TEST.gpa, 1024, 7)?;
    guest.finds_nothing_at(TEST.gpa + 1024 * PAGE)?;
    verify(&guest, TEST.gpa + 1025 * PAGE, 511, 7 + 1024)
}

fn same_again(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frames = ram::pages(8);
    stamp(frames, 8, 1);
    let whole = lists::map(TEST.gpa, frames, 8);
    let part = lists::map(TEST.gpa + 2 * PAGE, frames + 2 * PAGE, 3);
    guest.map(&[part])?;
    guest.map(&[whole, whole, part])?;
    guest.does(code::store(), &[(gpr::RAX, 77), (gpr::RDI, TEST.gpa + 8)])?;
    guest.map(&[whole])?;
    same!(ram::load(frames + 8), 77, "what L2 wrote");
    verify(&guest, TEST.gpa, 8, 1)
}

/// Another frame or another access where something is mapped: EXISTS, with the first such page,
/// and nothing of the entry is done.
fn never_replaces(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let (old, new) = (ram::pages(1), ram::pages(8));
    ram::store(old, 5);
    stamp(new, 8, 100);
    let page = |number: u64| TEST.gpa + number * PAGE;
    guest.map(&[lists::map(page(3), old, 1)])?;
    let read_only = MapRange { access: 5, ..lists::map(page(3), old, 1) };
    let cases = [
        ("another frame", lists::map(page(3), new, 1), page(3)),
        ("another access", read_only, page(3)),
        ("in the middle", lists::map(page(0), new, 8), page(3)),
        ("at the end", lists::map(page(0), new, 4), page(3)),
    ];
    for (name, entry, gpa) in cases {
        let list = lists::of(&[lists::map(HOLE, new, 1), entry, lists::map(page(16), new, 1)]);
        let answer = env.l0.fails_at(1, Status::Exists, Op::Map, &args::vm(0).list(list));
        same!(answer.case(format_args!("{name}"))?, gpa, "value, {name}");
        for absent in [0, 2, 4, 7, 16] {
            guest.finds_nothing_at(page(absent)).case(format_args!("{name}"))?;
        }
        same!(guest.reads(page(3))?, 5, "the old page, {name}");
        same!(guest.reads(HOLE)?, 100, "the entry before, {name}");
        guest.unmap(HOLE, 1)?;
    }
    guest.does(code::store(), &[(gpr::RAX, 6), (gpr::RDI, page(3))])?;
    same!(ram::load(old), 6, "the page stayed writable");
    Ok(())
}

/// Refuses one entry behind a good one, and checks that the good one is done and nothing else.
fn refuses(env: &Env<'_>, guest: &Guest, name: &str, entry: MapRange, status: Status) -> Verdict {
    let frame = ram::pages(1);
    ram::store(frame, 9);
    let list = lists::of(&[lists::map(HOLE, frame, 1), entry]);
    let value = env.l0.fails_at(1, status, Op::Map, &args::vm(guest.vm).list(list));
    same!(value.case(format_args!("{name}"))?, 0, "value, {name}");
    same!(guest.reads(HOLE)?, 9, "the entry before, {name}");
    guest.unmap(HOLE, 1)
}

fn form(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frame = ram::pages(2);
    let good = lists::map(TEST.gpa, frame, 1);
    let cases = [
        ("GPA misaligned by 1", MapRange { gpa: TEST.gpa + 1, ..good }),
        ("GPA misaligned by 2048", MapRange { gpa: TEST.gpa + 2048, ..good }),
        ("frame misaligned", MapRange { l1: frame + 8, ..good }),
        ("no pages", MapRange { pages: 0, ..good }),
        ("GPA wraps", MapRange { gpa: !0xfff, pages: 2, ..good }),
        ("frame wraps", MapRange { l1: !0xfff, pages: 2, ..good }),
    ];
    for (name, entry) in cases {
        refuses(env, &guest, name, entry, Status::BadArg)?;
    }
    guest.finds_nothing_at(TEST.gpa)
}

fn access(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let good = lists::map(TEST.gpa, ram::pages(1), 1);
    for access in [0, 2, 4, 6, 8, 15, 1 << 31 | 7, u32::MAX] {
        let entry = MapRange { access, ..good };
        refuses(env, &guest, "no READ, or an undefined bit", entry, Status::BadArg)?;
    }
    for access in [1, 3] {
        let entry = MapRange { access, ..good };
        if env.has(Features::EXEC_CONTROL) {
            guest.map(&[entry])?;
            guest.unmap(TEST.gpa, 1)?;
        } else {
            refuses(env, &guest, "no EXECUTE", entry, Status::NotSupported)?;
        }
    }
    guest.map(&[MapRange { access: 5, ..good }])
}

/// Numbers near the ends of 64 bits: refused, in whichever of the two ways fits.
fn huge_numbers(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let good = lists::map(TEST.gpa, ram::pages(1), 1);
    let huge = [1 << 20, 1 << 32, 1 << 40, (1 << 52) - 1, 1 << 52, 1 << 63, u64::MAX - 1, u64::MAX];
    for pages in huge.into_iter().filter(|pages| *pages > env.info.limits.range_pages.into()) {
        for op in [Op::Map, Op::Unmap, Op::Protect] {
            let entry = match op {
                Op::Map => MapRange { pages, ..good },
                Op::Unmap => lists::unmap(TEST.gpa, pages),
                _ => lists::protect(TEST.gpa, pages, lists::ALL),
            };
            let answer = env.l0.call(op, &args::vm(0).list(lists::of(&[entry])));
            let refused = matches!(answer.status, Status::BadArg | Status::Limit);
            holds!(refused, "{op:?} of {pages:#x} pages: {:?}", answer.status);
            same!((answer.index, answer.value), (0, 0), "{op:?} of {pages:#x} pages");
        }
    }
    for gpa in [1 << 52, 1 << 63, !0xfff, 1 << env.info.limits.gpa_bits] {
        refuses(env, &guest, "a huge GPA", MapRange { gpa, ..good }, Status::BadArg)?;
    }
    guest.finds_nothing_at(TEST.gpa)
}

fn outside_regions(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frames = ram::pages(4);
    let end = |region: pv_abi::l0::list::Region| region.gpa + region.pages * PAGE;
    let cases = [
        ("far from all", DEVICE, 1),
        ("behind a region", end(LOW), 1),
        ("across a region's end", end(LOW) - PAGE, 2),
        ("before a region", TEST.gpa - PAGE, 1),
        ("across a region's start", TEST.gpa - PAGE, 2),
        ("in the reserved part", 0xfee0_0000, 1),
        ("behind the last", end(HIGH), 1),
    ];
    for (name, gpa, pages) in cases {
        refuses(env, &guest, name, lists::map(gpa, frames, pages), Status::BadArg)?;
    }
    guest.finds_nothing_at(TEST.gpa)?;
    guest.finds_nothing_at(end(LOW) - PAGE)
}

fn not_ours(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let device = env.no_ram();
    let mut cases = [
        ("no RAM", Some(device), 1),
        ("the local APIC", Some(0xfee0_0000), 1),
        ("the I/O APIC", Some(0xfec0_0000), 1),
        ("firmware's place", Some(0xffff_f000), 1),
        ("far beyond", Some(1 << 51), 1),
        ("the last page of all", Some(!0xfff & !(1 << 63)), 1),
        ("across the end of RAM", env.usable.sharp_end().map(|end| end - PAGE), 2),
        ("behind the end of RAM", env.usable.sharp_end(), 1),
    ];
    for (name, address, pages) in &mut cases {
        let Some(l1) =
            address.filter(|address| !env.usable.contains(address + (*pages - 1) * PAGE))
        else {
            continue;
        };
        let entry = MapRange { l1, ..lists::map(TEST.gpa, 0, *pages) };
        refuses(env, &guest, name, entry, Status::NotYours)?;
        guest.finds_nothing_at(TEST.gpa).case(format_args!("{name}"))?;
    }
    Ok(())
}

/// Where the loader's map has no RAM below 1 MiB there may be RAM, ROM or nothing: mapped or
/// refused, but never as another's memory, and never ROM that L2 could write.
fn holes_of_the_map(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let holes = [0xa_0000, 0xc_0000, 0xf_0000].into_iter().filter(|at| !env.usable.contains(*at));
    let mut tried = 0;
    for l1 in holes {
        tried += 1;
        let list = lists::of(&[lists::map(TEST.gpa, l1, 1)]);
        let answer = env.l0.call(Op::Map, &args::vm(0).list(list));
        match answer.status {
            Status::NotYours => continue,
            Status::Ok => {}
            other => return crate::wrong!("MAP of {l1:#x} answered {other:?}"),
        }
        let old = guest.reads(TEST.gpa)?;
        guest.does(code::store(), &[(gpr::RAX, 0x600d), (gpr::RDI, TEST.gpa)])?;
        same!(guest.reads(TEST.gpa)?, 0x600d, "what L2 wrote to {l1:#x}, which L0 says is RAM");
        guest.does(code::store(), &[(gpr::RAX, old.into()), (gpr::RDI, TEST.gpa)])?;
        guest.unmap(TEST.gpa, 1)?;
    }
    if tried == 0 { skip!("the loader's map has no hole below 1 MiB") } else { Ok(()) }
}

fn too_many_pages(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let limit = u64::from(env.info.limits.range_pages);
    let frames = ram::pages(1);
    for pages in [limit + 1, limit * 2] {
        for op in [Op::Map, Op::Unmap, Op::Protect] {
            let entry = match op {
                Op::Map => lists::map(TEST.gpa, frames, pages),
                Op::Unmap => lists::unmap(TEST.gpa, pages),
                _ => lists::protect(TEST.gpa, pages, lists::ALL),
            };
            let list = lists::of(&[lists::unmap(HOLE, 1), entry]);
            let list = if op == Op::Unmap { list } else { lists::of(&[entry]) };
            let index = u32::from(op == Op::Unmap);
            env.l0
                .fails_at(index, Status::Limit, op, &args::vm(0).list(list))
                .case(format_args!("{pages} pages"))?;
        }
    }
    if limit <= TEST.pages {
        guest.unmap(TEST.gpa, limit)?;
    }
    Ok(())
}

fn frame_twice(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frame = ram::pages(1);
    let gpas = [TEST.gpa, TEST.gpa + 5 * PAGE, HOLE, HIGH.gpa];
    guest.map(&gpas.map(|gpa| lists::map(gpa, frame, 1)))?;
    for (value, gpa) in (50..).zip(gpas) {
        guest.does(code::store(), &[(gpr::RAX, value), (gpr::RDI, gpa)])?;
        for other in gpas {
            same!(u64::from(guest.reads(other)?), value, "what {gpa:#x} got, at {other:#x}");
        }
    }
    guest.unmap(gpas[0], 1)?;
    guest.finds_nothing_at(gpas[0])?;
    same!(guest.reads(gpas[1])?, 53, "the frame's other place");
    Ok(())
}

fn frame_in_two_vms(env: &mut Env<'_>) -> Verdict {
    if env.info.limits.vms < 2 {
        return skip!("one VM at most");
    }
    let frame = ram::pages(1);
    let first = Guest::with(env, 0, CreateVm::empty())?;
    let second = Guest::with(env, 1, CreateVm::empty())?;
    first.map(&[lists::map(TEST.gpa, frame, 1)])?;
    second.map(&[lists::map(HOLE, frame, 1)])?;
    first.does(code::store(), &[(gpr::RAX, 321), (gpr::RDI, TEST.gpa)])?;
    same!(second.reads(HOLE)?, 321, "what the other VM wrote");
    first.destroy()?;
    same!(second.reads(HOLE)?, 321, "after the other VM's end");
    Ok(())
}

/// A program touches 512 mapped pages, first and again, and the only exit is its end.
fn no_exit(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frames = ram::pages(512);
    guest.map(&[lists::map(TEST.gpa, frames, 512)])?;
    for round in 0..2 {
        let set = [(gpr::RDI, TEST.gpa), (gpr::RCX, 512), (gpr::RBX, round), (8, PAGE)];
        guest.does(code::writes(), &set)?;
        same!(ram::load(frames + 511 * PAGE), round, "the last page");
    }
    Ok(())
}

/// L1 and L2 write to the same frame in turns.
fn both_sides_write(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let at = guest.at(layout::DATA);
    guest.start(0, code::counts(), &[])?;
    for round in 1..50_u32 {
        ram::store(at, round.into());
        same!(guest.reads(layout::DATA)?, round, "what L1 wrote");
        guest.does(
            code::store(),
            &[(gpr::RAX, u64::from(round) + 1000), (gpr::RDI, layout::DATA)],
        )?;
        same!(ram::load(at), u64::from(round) + 1000, "what L2 wrote");
    }
    Ok(())
}

fn above_4_gib(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frames = ram::pages(4);
    stamp(frames, 4, 40);
    let last = HIGH.gpa + (HIGH.pages - 2) * PAGE;
    guest.map(&[lists::map(HIGH.gpa, frames, 2), lists::map(last, frames + 2 * PAGE, 2)])?;
    verify(&guest, HIGH.gpa, 2, 40)?;
    verify(&guest, last, 2, 42)?;
    guest.finds_nothing_at(HIGH.gpa + 2 * PAGE)
}

/// MAP, from another CPU, of a page that a running L2 waits for. Its RUN goes on.
fn while_running(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = Guest::new(env)?;
    let frames = ram::pages(2);
    let flag = layout::DATA;
    let deadline = clock::after(4_000_000);
    let set = [(gpr::RDI, flag), (gpr::RBX, 1), (15, deadline)];
    guest.start(0, code::awaits(), &set)?;
    let said = AtomicU64::new(0);
    let runner = || {
        let exit = guest.exit_of(&second.l0, 0, &crate::l2::guest::control());
        let eax = exit.and_then(|(exit, _)| crate::l2::guest::said_through(&second.l0, exit));
        said.store(eax.map_or(u64::MAX, u64::from), SeqCst);
    };
    let verdict = smp::beside(second.cpu, &runner, || {
        clock::nap(2000);
        let verdict = (0..64)
            .try_for_each(|turn| guest.map(&[lists::map(TEST.gpa + turn * PAGE, frames, 1)]));
        clock::nap(2000);
        ram::store(guest.at(flag), 1);
        verdict
    });
    verdict?;
    same!(said.load(SeqCst), 1, "EAX of the program, which ran through 64 MAPs");
    let set = [(gpr::RDI, TEST.gpa), (gpr::RCX, 64), (gpr::RBX, 3), (8, PAGE)];
    guest.does(code::writes(), &set)?;
    same!(ram::load(frames), 3, "the frame");
    Ok(())
}

/// A page that a vCPU found absent is there for it after MAP, without any flush.
fn seen_by_another_vcpu(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frame = ram::pages(1);
    ram::store(frame, 8);
    for round in 0..20 {
        let gpa = TEST.gpa + round * PAGE;
        guest.finds_nothing_at(gpa)?;
        guest.map(&[lists::map(gpa, frame, 1)])?;
        same!(guest.reads(gpa)?, 8, "page {round} after MAP");
    }
    Ok(())
}
