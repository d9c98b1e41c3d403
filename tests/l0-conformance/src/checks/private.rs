//! Private memory: SHARE and UNSHARE (spec section 5.6).

use super::{Group, check, lists::verify};
use crate::{
    env::Env,
    l0::{
        Caller,
        args::{self, List, With},
        lists,
    },
    l2::{
        code,
        guest::Guest,
        layout::{HOLE, TEST},
    },
    runtime::ram::{self, PAGE},
    same, skip,
    tap::{Case, Verdict},
};
use pv_abi::l0::{
    Features, Op, Status,
    list::{MapRange, MsrValue},
    op::flags::Convert,
    regs::gpr,
};

pub const GROUP: Group = Group {
    name: "private",
    checks: &[
        check("keeps_content", "L0-PRIV-1 L0-PRIV-5", keeps_content),
        check("zeroes", "L0-PRIV-1", zeroes),
        check("again", "L0-PRIV-2 L0-LIST-4", again),
        check("batches", "L0-PRIV-6 L0-LIST-2", batches),
        check("not_mapped", "L0-PRIV-3 L0-PRIV-4", not_mapped),
        check("mapped_twice", "L0-PRIV-3", mapped_twice),
        check("shared_page", "L0-PRIV-3", shared_page),
        check("no_other_mapping", "L0-PRIV-8 L0-MAP-1", no_other_mapping),
        check("no_list_or_buffer", "L0-PRIV-8", no_list_or_buffer),
        check("no_shared_page", "L0-PRIV-8 L0-SETUP-3", no_shared_page),
        check("same_mapping_again", "L0-MAP-2", same_mapping_again),
        check("unmap_zeroes", "L0-PRIV-7 L0-MAP-5", unmap_zeroes),
        check("destroy_zeroes", "L0-PRIV-7 L0-VM-3", destroy_zeroes),
        check("reset_zeroes", "L0-PRIV-7 L0-RST-1", reset_zeroes),
        check("form", "L0-LIST-7", form),
    ],
};

const PAGES: u64 = 16;
const FIRST: u64 = 0x700;

/// A VM with 16 stamped pages at TEST.
fn shared(env: &Env<'_>) -> Verdict<(Guest, u64)> {
    env.needs(Features::PRIVATE, "PRIVATE")?;
    let guest = Guest::new(env)?;
    let frames = ram::pages(PAGES);
    (0..PAGES).for_each(|page| ram::store(frames + page * PAGE, FIRST + page));
    guest.map(&[lists::map(TEST.gpa, frames, PAGES)])?;
    Ok((guest, frames))
}

fn with(entries: &[MapRange], flags: Convert) -> pv_abi::l0::page::Args {
    args::vm(0).flags(flags.bits()).list(lists::of(entries))
}

fn convert(guest: &Guest, op: Op, page: u64, pages: u64, flags: Convert) -> Verdict {
    guest.l0.ok(op, &with(&[lists::unmap(TEST.gpa + page * PAGE, pages)], flags))?;
    Ok(())
}

const KEEP: Convert = Convert::empty();
const ZERO: Convert = Convert::ZERO;

fn keeps_content(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    convert(&guest, Op::Unshare, 2, 8, KEEP)?;
    verify(&guest, TEST.gpa, PAGES, FIRST)?;
    guest.does(code::store(), &[(gpr::RDI, TEST.gpa + 3 * PAGE + 8), (gpr::RAX, 0x55)])?;
    convert(&guest, Op::Share, 2, 8, KEEP)?;
    verify(&guest, TEST.gpa, PAGES, FIRST)?;
    same!(ram::load(frames + 3 * PAGE + 8), 0x55, "what L2 wrote while the page was private");
    same!(ram::load(frames + 3 * PAGE), FIRST + 3, "the content");
    Ok(())
}

fn zeroes(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    convert(&guest, Op::Unshare, 0, 2, ZERO)?;
    same!(guest.reads(TEST.gpa)?, 0, "a page unshared with ZERO");
    same!(u64::from(guest.reads(TEST.gpa + 2 * PAGE)?), FIRST + 2, "the page behind");
    guest.does(code::store(), &[(gpr::RDI, TEST.gpa), (gpr::RAX, 0x5ec7e7)])?;
    convert(&guest, Op::Share, 0, 2, ZERO)?;
    same!(ram::load(frames), 0, "a page shared with ZERO, as L1 sees it");
    same!(guest.reads(TEST.gpa)?, 0, "and as L2 sees it");
    Ok(())
}

/// A page in the state that is asked for stays as it is, even with ZERO.
fn again(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = shared(env)?;
    convert(&guest, Op::Share, 0, PAGES, ZERO)?;
    verify(&guest, TEST.gpa, PAGES, FIRST)?;
    convert(&guest, Op::Unshare, 4, 4, KEEP)?;
    for flags in [ZERO, KEEP, ZERO] {
        convert(&guest, Op::Unshare, 4, 4, flags)?;
        verify(&guest, TEST.gpa, PAGES, FIRST)?;
    }
    // Private and shared pages in one entry.
    convert(&guest, Op::Unshare, 0, 8, KEEP)?;
    convert(&guest, Op::Share, 0, PAGES, KEEP)?;
    verify(&guest, TEST.gpa, PAGES, FIRST)
}

fn batches(env: &mut Env<'_>) -> Verdict {
    env.needs(Features::PRIVATE, "PRIVATE")?;
    let guest = Guest::new(env)?;
    let frames = ram::pages_at(1024, 0x20_0000);
    (0..1024).for_each(|page| ram::store(frames + page * PAGE, FIRST + page));
    let gpa = |page: u64| TEST.gpa + page * PAGE;
    guest
        .map(&[lists::map(gpa(0), frames, 512), lists::map(gpa(512), frames + 512 * PAGE, 512)])?;
    // 2 MiB and more at once, and one range a page.
    convert(&guest, Op::Unshare, 0, 512, KEEP)?;
    convert(&guest, Op::Unshare, 512, 512, KEEP)?;
    verify(&guest, TEST.gpa, 1024, FIRST)?;
    let single = lists::made(512, |index| lists::unmap(gpa(u64::from(index) * 2), 1));
    let answer = env.l0.ok(Op::Share, &args::vm(0).list(single))?;
    same!(answer.index, 512, "index");
    same!(ram::load(frames + 2 * PAGE), FIRST + 2, "a page that was shared");
    let answer = env.l0.ok(Op::Unshare, &args::vm(0).list(single))?;
    same!(answer.index, 512, "index");
    verify(&guest, TEST.gpa, 1024, FIRST)
}

/// The first page that is not mapped is named, and nothing of the entry is done.
fn not_mapped(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    for op in [Op::Unshare, Op::Share] {
        let entries = [lists::unmap(TEST.gpa, 1), lists::unmap(TEST.gpa + 12 * PAGE, 8)];
        let value = env.l0.fails_at(1, Status::NoSuch, op, &with(&entries, ZERO))?;
        same!(value, TEST.gpa + PAGES * PAGE, "value of {op:?}");
    }
    same!(ram::load(frames + 12 * PAGE), FIRST + 12, "a page of the entry that failed");
    verify(&guest, TEST.gpa + PAGE, PAGES - 1, FIRST + 1)
}

/// A frame with another mapping is busy, and nothing of the entry is done.
fn mapped_twice(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    guest.map(&[lists::map(HOLE, frames + 6 * PAGE, 1)])?;
    let entries = [lists::unmap(TEST.gpa, 2), lists::unmap(TEST.gpa + 4 * PAGE, 8)];
    let value = env.l0.fails_at(1, Status::Busy, Op::Unshare, &with(&entries, ZERO))?;
    same!(value, TEST.gpa + 6 * PAGE, "value: the first busy page");
    verify(&guest, TEST.gpa + 4 * PAGE, 8, FIRST + 4)?;
    guest.unmap(HOLE, 1)?;
    convert(&guest, Op::Unshare, 4, 8, KEEP)?;
    verify(&guest, TEST.gpa + 4 * PAGE, 8, FIRST + 4)
}

/// A registered shared page is busy.
fn shared_page(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = shared(env)?;
    guest.map(&[lists::map(HOLE, env.l0.page, 1)])?;
    let entries = [lists::unmap(HOLE, 1)];
    let value = env.l0.fails_at(0, Status::Busy, Op::Unshare, &with(&entries, KEEP))?;
    same!(value, HOLE, "value");
    Ok(())
}

fn no_other_mapping(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    convert(&guest, Op::Unshare, 3, 2, KEEP)?;
    let map = |gpa, page, pages| with(&[lists::map(gpa, frames + page * PAGE, pages)], KEEP);
    let value = env.l0.fails_at(0, Status::Busy, Op::Map, &map(HOLE, 3, 1))?;
    same!(value, HOLE, "value: the GPA of the private frame");
    let value = env.l0.fails_at(0, Status::Busy, Op::Map, &map(HOLE, 2, 4))?;
    same!(value, HOLE + PAGE, "value: the GPA of the private frame");
    guest.finds_nothing_at(HOLE)?;
    convert(&guest, Op::Share, 3, 2, KEEP)?;
    guest.map(&[lists::map(HOLE, frames + 3 * PAGE, 1)])?;
    same!(u64::from(guest.reads(HOLE)?), FIRST + 3, "a frame that is shared again");
    Ok(())
}

fn no_list_or_buffer(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    ram::write(frames, &lists::unmap(HOLE, 1));
    ram::write(frames + PAGE - 32, &lists::unmap(HOLE, 1));
    ram::write(frames + 4 * PAGE, &MsrValue { index: 0x10, ..MsrValue::default() });
    convert(&guest, Op::Unshare, 0, 1, KEEP)?;
    convert(&guest, Op::Unshare, 4, 1, KEEP)?;
    let list = |address, count| List { address, count };
    for list in [list(frames, 1), list(frames + PAGE - 32, 2), list(frames + 4 * PAGE - 32, 2)] {
        env.l0.refuses(Status::NotYours, Op::Unmap, &args::vm(0).list(list))?;
    }
    let msrs = args::vcpu(0, 0).list(list(frames + 4 * PAGE, 1));
    env.l0.refuses(Status::NotYours, Op::GetMsrs, &msrs)?;
    let xsave = args::vcpu(0, 0).list(list(frames + 4 * PAGE - 64, env.info.limits.xsave_bytes));
    env.l0.refuses(Status::NotYours, Op::GetXsave, &xsave)
}

fn no_shared_page(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    convert(&guest, Op::Unshare, 0, 1, KEEP)?;
    if env.has(Features::PRIVATE_ENFORCED) {
        return skip!("L1 must not look at a page that L0 has taken away");
    }
    let thief = Caller { page: frames, way: env.l0.way };
    same!(thief.setup(), Status::NotServed, "SETUP of a private page");
    env.l0.ok(Op::Query, &args::none())?;
    Ok(())
}

/// MAP of what is mapped and private already leaves its owner.
fn same_mapping_again(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    convert(&guest, Op::Unshare, 0, PAGES, KEEP)?;
    guest.map(&[lists::map(TEST.gpa, frames, PAGES)])?;
    let list = with(&[lists::map(HOLE, frames, 1)], KEEP);
    env.l0.fails_at(0, Status::Busy, Op::Map, &list)?;
    verify(&guest, TEST.gpa, PAGES, FIRST)
}

fn zeroed(frames: u64, pages: core::ops::Range<u64>, name: &str) -> Verdict {
    for page in 0..PAGES {
        let expected = if pages.contains(&page) { 0 } else { FIRST + page };
        same!(ram::load(frames + page * PAGE), expected, "page {page}, private {pages:?}, {name}");
    }
    Ok(())
}

fn unmap_zeroes(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    convert(&guest, Op::Unshare, 4, 8, KEEP)?;
    guest.unmap(TEST.gpa, PAGES)?;
    zeroed(frames, 4..12, "after UNMAP")?;
    // L1's again.
    guest.map(&[lists::map(HOLE, frames + 4 * PAGE, 1)])?;
    same!(guest.reads(HOLE)?, 0, "mapped again");
    Ok(())
}

fn destroy_zeroes(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    convert(&guest, Op::Unshare, 0, 4, KEEP)?;
    guest.destroy()?;
    zeroed(frames, 0..4, "after DESTROY_VM")
}

fn reset_zeroes(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    convert(&guest, Op::Unshare, 9, 3, KEEP)?;
    env.l0.ok(Op::Reset, &args::none())?;
    zeroed(frames, 9..12, "after RESET")
}

fn form(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = shared(env)?;
    let good = lists::unmap(TEST.gpa, 1);
    let cases = [
        ("an L1 address", MapRange { l1: frames, ..good }),
        ("an access", MapRange { access: 7, ..good }),
        ("misaligned", MapRange { gpa: TEST.gpa + 8, ..good }),
        ("no pages", MapRange { pages: 0, ..good }),
        ("reserved", MapRange { reserved: 1, ..good }),
    ];
    for op in [Op::Share, Op::Unshare] {
        for (name, bad) in cases {
            env.l0
                .fails_at(0, Status::BadArg, op, &with(&[bad], KEEP))
                .case(format_args!("{name}"))?;
        }
    }
    verify(&guest, TEST.gpa, PAGES, FIRST)
}
