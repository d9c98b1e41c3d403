//! The dirty log (spec section 5.5).

use super::{Group, check};
use crate::{
    env::Env,
    holds,
    l0::{
        args::{self, List, With},
        lists,
    },
    l2::{
        code,
        guest::{Guest, control},
        layout::{DATA, DEVICE, LOW, TEST},
    },
    println,
    runtime::{
        clock, cpu,
        ram::{self, PAGE},
        smp,
    },
    same,
    tap::Verdict,
};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use pv_abi::l0::{Exit, Features, Op, Status, page::offset, regs::gpr, run::RunControl};

pub const GROUP: Group = Group {
    name: "dirty",
    checks: &[
        check("exact", "L0-DIRTY-1 L0-DIRTY-2 L0-DIRTY-3", exact),
        check("starts_clear", "L0-DIRTY-1", starts_clear),
        check("second_start", "L0-DIRTY-1", second_start),
        check("takes_a_part", "L0-DIRTY-2", takes_a_part),
        check("outside_regions", "L0-DIRTY-2", outside_regions),
        check("bad_arguments", "L0-DIRTY-2 L0-OP-1", bad_arguments),
        check("largest", "L0-DIRTY-2", largest),
        check("no_log", "L0-DIRTY-2 L0-DIRTY-5", no_log),
        check("by_gpa", "L0-DIRTY-4", by_gpa),
        check("writes_of_l1", "L0-DIRTY-4", writes_of_l1),
        check("writes_of_l0", "L0-DIRTY-1", writes_of_l0),
        check("under_a_writer", "L0-DIRTY-3", under_a_writer),
    ],
};

const PAGES: u64 = 128;

/// A VM with 128 mapped pages at TEST and a log.
fn logging(env: &Env<'_>) -> Verdict<(Guest, u64)> {
    env.needs(Features::DIRTY_LOG, "DIRTY_LOG")?;
    let guest = Guest::new(env)?;
    let frames = ram::pages(PAGES);
    guest.map(&[lists::map(TEST.gpa, frames, PAGES)])?;
    env.l0.ok(Op::DirtyStart, &args::vm(0))?;
    Ok((guest, frames))
}

/// The bits of 64 pages from `gpa` on.
fn take(env: &Env<'_>, gpa: u64) -> Verdict<u64> {
    let buffer = ram::pages(1);
    ram::store(buffer, 0xeeee_eeee_eeee_eeee);
    ram::store(buffer + 8, 0xeeee_eeee_eeee_eeee);
    let list = List { address: buffer, count: 0 };
    env.l0.ok(Op::DirtyTake, &args::vm(0).list(list).arg(0, gpa).arg(1, 64))?;
    same!(ram::load(buffer + 8), 0xeeee_eeee_eeee_eeee, "the word behind the bitmap");
    Ok(ram::load(buffer))
}

fn write(guest: &Guest, page: u64) -> Verdict {
    guest.does(
        code::store(),
        &[(gpr::RDI, TEST.gpa + page * PAGE + 8 * (page % 512)), (gpr::RAX, page)],
    )?;
    Ok(())
}

/// The bits that must be set are set; others that are set are told, for they are allowed.
fn bits(name: &str, found: u64, written: u64) -> Verdict {
    same!(found & written, written, "bits of pages that were written, {name}");
    if found != written {
        println!("# {} bits without a write, {name}", (found & !written).count_ones());
    }
    Ok(())
}

fn exact(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = logging(env)?;
    bits("at first", take(env, TEST.gpa)?, 0)?;
    for round in 0..3_u64 {
        let pages = [round, 5, 17 + round, 62, 63];
        pages.into_iter().try_for_each(|page| write(&guest, page))?;
        guest.reads(TEST.gpa + 40 * PAGE)?;
        let written = pages.into_iter().fold(0, |bits, page| bits | 1 << page);
        bits("after writes", take(env, TEST.gpa)?, written)?;
        bits("taken again", take(env, TEST.gpa)?, 0)?;
        // Pages that were logged once are logged again.
        write(&guest, 5)?;
        bits("after another write", take(env, TEST.gpa)?, 1 << 5)?;
    }
    write(&guest, 64)?;
    bits("of the first 64 pages", take(env, TEST.gpa)?, 0)?;
    bits("of the next 64 pages", take(env, TEST.gpa + 64 * PAGE)?, 1)
}

/// What was written before DIRTY_START is not in the log, but what is written after it is, though
/// the page had been written before.
fn starts_clear(env: &mut Env<'_>) -> Verdict {
    env.needs(Features::DIRTY_LOG, "DIRTY_LOG")?;
    let guest = Guest::new(env)?;
    guest.map(&[lists::map(TEST.gpa, ram::pages(PAGES), PAGES)])?;
    (0..8).try_for_each(|page| write(&guest, page))?;
    env.l0.ok(Op::DirtyStart, &args::vm(0))?;
    same!(take(env, TEST.gpa)?, 0, "bits at DIRTY_START");
    write(&guest, 3)?;
    bits("after a write", take(env, TEST.gpa)?, 1 << 3)?;
    env.l0.ok(Op::DirtyStop, &args::vm(0))?;
    write(&guest, 4)?;
    env.l0.ok(Op::DirtyStart, &args::vm(0))?;
    same!(take(env, TEST.gpa)?, 0, "bits at the second log's start");
    Ok(())
}

fn second_start(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = logging(env)?;
    write(&guest, 9)?;
    env.l0.ok(Op::DirtyStart, &args::vm(0))?;
    write(&guest, 10)?;
    bits("after a second DIRTY_START", take(env, TEST.gpa)?, 1 << 9 | 1 << 10)
}

/// Only the bits that were given are cleared.
fn takes_a_part(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = logging(env)?;
    for page in [1, 65] {
        write(&guest, page)?;
    }
    bits("of the second half", take(env, TEST.gpa + 64 * PAGE)?, 2)?;
    bits("of the first half", take(env, TEST.gpa)?, 2)
}

fn outside_regions(env: &mut Env<'_>) -> Verdict {
    let (_, _) = logging(env)?;
    for gpa in [DEVICE, 0xfee0_0000, 1 << 48, LOW.gpa + LOW.pages * PAGE] {
        same!(take(env, gpa)?, 0, "bits of {gpa:#x}, in no region");
    }
    Ok(())
}

fn bad_arguments(env: &mut Env<'_>) -> Verdict {
    logging(env)?;
    let grain = 64 * PAGE;
    let with = |gpa: u64, pages: u64| {
        args::vm(0).list(List { address: ram::pages(1), count: 0 }).arg(0, gpa).arg(1, pages)
    };
    for (gpa, pages) in [
        (TEST.gpa, 0),
        (TEST.gpa, 1),
        (TEST.gpa, 63),
        (TEST.gpa, 65),
        (TEST.gpa + PAGE, 64),
        (TEST.gpa + 1, 64),
        (TEST.gpa + grain / 2, 64),
    ] {
        env.l0.refuses(Status::BadArg, Op::DirtyTake, &with(gpa, pages))?;
    }
    let limit = u64::from(env.info.limits.dirty_pages);
    for pages in [(limit / 64 + 1) * 64, (limit / 64 + 1) * 128] {
        env.l0.refuses(Status::Limit, Op::DirtyTake, &with(TEST.gpa, pages))?;
    }
    // Bytes that wrap are malformed, and above the limit.
    for pages in [1 << 52, 1 << 63, u64::MAX - 63] {
        let status = env.l0.call(Op::DirtyTake, &with(TEST.gpa, pages)).status;
        let refused = matches!(status, Status::BadArg | Status::Limit);
        holds!(refused, "{pages:#x} pages: {status:?}");
    }
    let odd =
        args::vm(0).list(List { address: ram::pages(1) + 4, count: 0 }).arg(0, TEST.gpa).arg(1, 64);
    env.l0.refuses(Status::BadArg, Op::DirtyTake, &odd)
}

/// As many pages as the limit says, in no region for the most part.
fn largest(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = logging(env)?;
    // At most 8 MiB of bitmap.
    let pages = (u64::from(env.info.limits.dirty_pages) / 64 * 64).min(1 << 26);
    let buffer = ram::pages((pages / 8).div_ceil(PAGE));
    ram::fill(buffer, pages / 8, 0xee);
    write(&guest, 2)?;
    let with = args::vm(0).list(List { address: buffer, count: 0 }).arg(0, TEST.gpa).arg(1, pages);
    env.l0.ok(Op::DirtyTake, &with)?;
    bits("of the first 64 pages", ram::load(buffer), 1 << 2)?;
    let last = (pages / 64 - 1) * 8;
    same!(ram::load(buffer + last), 0, "the last word, of {pages} pages");
    Ok(())
}

fn no_log(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = logging(env)?;
    write(&guest, 1)?;
    env.l0.ok(Op::DirtyStop, &args::vm(0))?;
    let with =
        args::vm(0).list(List { address: ram::pages(1), count: 0 }).arg(0, TEST.gpa).arg(1, 64);
    env.l0.refuses(Status::BadState, Op::DirtyTake, &with)?;
    write(&guest, 1)?;
    env.l0.ok(Op::DirtyStart, &args::vm(0))?;
    same!(take(env, TEST.gpa)?, 0, "bits of a new log");
    Ok(())
}

/// UNMAP and MAP leave bits as they are, and a page mapped later is logged.
fn by_gpa(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = logging(env)?;
    write(&guest, 4)?;
    write(&guest, 5)?;
    guest.unmap(TEST.gpa + 4 * PAGE, 1)?;
    guest.unmap(TEST.gpa + 5 * PAGE, 1)?;
    guest.map(&[lists::map(TEST.gpa + 5 * PAGE, ram::pages(1), 1)])?;
    bits("after UNMAP and MAP", take(env, TEST.gpa)?, 1 << 4 | 1 << 5)?;
    write(&guest, 5)?;
    bits("of a page mapped during the log", take(env, TEST.gpa)?, 1 << 5)
}

/// Writes by L1 are not logged: bits for them are allowed, but none may be needed.
fn writes_of_l1(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = logging(env)?;
    (0..PAGES).for_each(|page| ram::store(frames + page * PAGE, 1));
    write(&guest, 7)?;
    let found = take(env, TEST.gpa)?;
    bits("after writes of L1 to all pages", found, 1 << 7)?;
    holds!(found != u64::MAX, "every page that L1 wrote is in the log");
    Ok(())
}

/// A string that L0 stores for L2.
fn writes_of_l0(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = logging(env)?;
    let set = [(gpr::RDX, 0x300), (gpr::RDI, TEST.gpa + 30 * PAGE - 8), (gpr::RCX, 16)];
    guest.start(0, code::in_string(), &set)?;
    for _ in 0..32 {
        match guest.run()? {
            Exit::Io { port: 0x300, .. } => env.l0.put(offset::IO, &[7_u8; 64]),
            other => {
                guest.said(other)?;
                break;
            }
        }
    }
    bits("after a string across two pages", take(env, TEST.gpa)?, 1 << 29 | 1 << 30)
}

/// Bitmaps are taken while a program writes the same pages over and over: each value seen must be
/// in a bitmap taken before, or set the bit for the next.
fn under_a_writer(env: &mut Env<'_>) -> Verdict {
    const WRITTEN: u64 = 16;
    let second = env.second()?;
    let (guest, frames) = logging(env)?;
    let time = clock::after(800_000);
    let set =
        [(gpr::RDI, TEST.gpa), (gpr::RSI, TEST.gpa + WRITTEN * PAGE), (gpr::RBX, 1), (15, time)];
    guest.start(0, code::dirties(), &set)?;
    let odd = AtomicU32::new(0);
    let runner = || {
        let control = RunControl { deadline: clock::after(5_000_000), ..control() };
        let (status, raw) = second.l0.run(0, 0, &control);
        if status.ok().is_err() || !matches!(Exit::decode(&raw), Exit::Io { .. }) {
            odd.store(raw.reason | status.raw() << 16, SeqCst);
        }
    };
    let buffer = List { address: ram::pages(1), count: 0 };
    let taking = args::vm(0).list(buffer).arg(0, TEST.gpa).arg(1, 64);
    // What pages held before the last bitmap, and that bitmap.
    let mut seen = [0_u64; WRITTEN as usize];
    let mut rounds = 0_u32;
    let mut earlier = 0;
    let mut look = |env: &Env<'_>| -> Verdict {
        let before: [u64; WRITTEN as usize] =
            core::array::from_fn(|page| ram::load(frames + page as u64 * PAGE));
        env.l0.ok(Op::DirtyTake, &taking)?;
        let found = ram::load(buffer.address);
        for (page, (seen, before)) in seen.iter_mut().zip(before).enumerate() {
            // Written between the last two looks: the bit is in this bitmap, or it was in the last
            // one, which was taken after the last look.
            let either = (found | earlier) >> page & 1 == 1;
            holds!(
                either || before == *seen,
                "page {page}: {seen:#x} became {before:#x} without a bit"
            );
            *seen = before;
        }
        earlier = found;
        Ok(())
    };
    let verdict = smp::beside(second.cpu, &runner, || {
        while cpu::tsc() < time {
            look(env)?;
            rounds += 1;
            clock::nap(500);
        }
        Ok::<(), crate::tap::Wrong>(())
    });
    verdict?;
    look(env)?;
    same!(odd.load(SeqCst), 0, "status << 16 | reason of the writer's RUN");
    let last = ram::load(frames);
    println!("# {rounds} bitmaps under a writer that wrote {last:#x}");
    holds!(last > WRITTEN, "the writer wrote nothing");
    same!(ram::load(guest.at(DATA)), 0, "the block's data");
    Ok(())
}
