//! UNMAP and PROTECT without races (spec section 5.3, exits of 6.4).

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
        layout::{DEVICE, HOLE, TEST},
    },
    runtime::ram::{self, PAGE},
    same,
    tap::{Case, Verdict},
    wrong,
};
use pv_abi::l0::{
    Exit, Features, Op, Status,
    exit::Access as Kind,
    list::{Access, MapRange},
    regs::gpr,
};

pub const GROUP: Group = Group {
    name: "unmap",
    checks: &[
        check("takes_away", "L0-MAP-5 L0-TLB-1", takes_away),
        check("parts", "L0-MAP-5", parts),
        check("scattered", "L0-MAP-5 L0-LIST-2", scattered),
        check("nothing_there", "L0-MAP-5 L0-LIST-4", nothing_there),
        check("form", "L0-MAP-5 L0-LIST-7", form),
        check("other_frame_afterwards", "L0-MAP-5 L0-TLB-1", other_frame_afterwards),
        check("after_a_failure", "L0-TLB-3 L0-LIST-2", after_a_failure),
        check("protect_write", "L0-MAP-6 L0-EXIT-5", protect_write),
        check("protect_and_back", "L0-MAP-6 L0-TLB-4", protect_and_back),
        check("protect_parts", "L0-MAP-6", protect_parts),
        check("protect_nothing", "L0-MAP-6 L0-LIST-2", protect_nothing),
        check("protect_form", "L0-MAP-6 L0-LIST-7", protect_form),
        check("protect_again", "L0-LIST-4", protect_again),
        check("execute", "L0-MAP-6", execute),
        check("fault_address", "L0-EXIT-5", fault_address),
        check("unmapped_again", "L0-EXIT-5 L0-REG-1", unmapped_again),
    ],
};

const READ_ONLY: Access = Access::READ.union(Access::EXECUTE);

/// A VM with `pages` stamped frames at TEST.
fn with_pages(env: &Env<'_>, pages: u64) -> Verdict<(Guest, u64)> {
    let guest = Guest::new(env)?;
    let frames = ram::pages(pages);
    (0..pages).for_each(|page| ram::store(frames + page * PAGE, 10 + page));
    guest.map(&[lists::map(TEST.gpa, frames, pages)])?;
    Ok((guest, frames))
}

fn protect(guest: &Guest, gpa: u64, pages: u64, access: Access) -> Verdict {
    let list = lists::of(&[lists::protect(gpa, pages, access)]);
    guest.l0.ok(Op::Protect, &args::vm(guest.vm).list(list))?;
    Ok(())
}

/// A store to `gpa` is refused and has no effect on `frame`.
#[track_caller]
fn store_fails(env: &Env<'_>, guest: &Guest, gpa: u64, frame: u64) -> Verdict {
    let before = ram::load(frame);
    let exit = guest.exits(code::store(), &[(gpr::RDI, gpa), (gpr::RAX, !before)])?;
    let refused = match exit {
        Exit::Protected { .. } => true,
        Exit::Unmapped { .. } => !env.has(Features::FAULT_ADDRESS),
        _ => false,
    };
    holds!(refused, "a store to a page without WRITE gave {exit:x?}");
    same!(ram::load(frame), before, "the frame after a store without WRITE");
    Ok(())
}

fn takes_away(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = with_pages(env, 4)?;
    verify(&guest, TEST.gpa, 4, 10)?;
    guest.unmap(TEST.gpa, 4)?;
    for page in 0..4 {
        let gpa = TEST.gpa + page * PAGE;
        guest.finds_nothing_at(gpa)?;
        let exit = guest.exits(code::store(), &[(gpr::RDI, gpa), (gpr::RAX, 1)])?;
        holds!(matches!(exit, Exit::Unmapped { .. }), "a store gave {exit:x?}");
        same!(ram::load(frames + page * PAGE), 10 + page, "the frame after a store");
    }
    Ok(())
}

fn parts(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = with_pages(env, 16)?;
    verify(&guest, TEST.gpa, 16, 10)?;
    guest.unmap(TEST.gpa + 5 * PAGE, 6)?;
    for absent in [5, 8, 10] {
        guest.finds_nothing_at(TEST.gpa + absent * PAGE)?;
    }
    verify(&guest, TEST.gpa, 5, 10)?;
    verify(&guest, TEST.gpa + 11 * PAGE, 5, 21)
}

/// Entries of one list that are apart, in any order: what lies between stays, mapped or not.
fn scattered(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = with_pages(env, 16)?;
    verify(&guest, TEST.gpa, 16, 10)?;
    let mut absent = 0u32;
    for pages in [&[7][..], &[1, 3, 6, 8, 12, 10, 13], &[0, 2, 4, 15]] {
        let entry = |index: u32| lists::unmap(TEST.gpa + pages[index as usize] * PAGE, 1);
        let list = lists::made(pages.len() as u32, entry);
        env.l0.ok(Op::Unmap, &args::vm(0).list(list))?;
        pages.iter().for_each(|page| absent |= 1 << page);
        for page in 0..16 {
            let gpa = TEST.gpa + page * PAGE;
            match absent >> page & 1 {
                0 => same!(u64::from(guest.reads(gpa)?), 10 + page, "page {page}"),
                _ => guest.finds_nothing_at(gpa)?,
            }
        }
    }
    Ok(())
}

/// Pages that are not mapped stay so: none, some, far apart, twice.
fn nothing_there(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = with_pages(env, 4)?;
    guest.unmap(HOLE, 8)?;
    guest.unmap(TEST.gpa + 2 * PAGE, 8)?;
    guest.unmap(TEST.gpa + 2 * PAGE, 8)?;
    guest.finds_nothing_at(TEST.gpa + 2 * PAGE)?;
    verify(&guest, TEST.gpa, 2, 10)
}

fn form(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = with_pages(env, 4)?;
    let good = lists::unmap(TEST.gpa, 1);
    let cases = [
        ("an L1 address", MapRange { l1: frames, ..good }),
        ("an access", MapRange { access: 1, ..good }),
        ("GPA misaligned", MapRange { gpa: TEST.gpa + 8, ..good }),
        ("no pages", MapRange { pages: 0, ..good }),
        ("GPA wraps", MapRange { gpa: !0xfff, pages: 2, ..good }),
        ("outside all regions", MapRange { gpa: DEVICE, ..good }),
        ("across a region's start", MapRange { gpa: TEST.gpa - PAGE, pages: 2, ..good }),
    ];
    for (name, entry) in cases {
        let list = lists::of(&[lists::unmap(TEST.gpa + 3 * PAGE, 1), entry]);
        env.l0
            .fails_at(1, Status::BadArg, Op::Unmap, &args::vm(0).list(list))
            .case(format_args!("{name}"))?;
    }
    guest.finds_nothing_at(TEST.gpa + 3 * PAGE)?;
    verify(&guest, TEST.gpa, 3, 10)
}

fn other_frame_afterwards(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = with_pages(env, 8)?;
    for round in 0..32 {
        let page = round % 8;
        guest.unmap(TEST.gpa, 1)?;
        guest.map(&[lists::map(TEST.gpa, frames + page * PAGE, 1)])?;
        same!(u64::from(guest.reads(TEST.gpa)?), 10 + page, "round {round}");
    }
    Ok(())
}

/// Entries before the one that fails are done for good.
fn after_a_failure(env: &mut Env<'_>) -> Verdict {
    let (guest, _) = with_pages(env, 4)?;
    verify(&guest, TEST.gpa, 4, 10)?;
    let list = lists::of(&[lists::unmap(TEST.gpa, 1), lists::unmap(TEST.gpa + 1, 1)]);
    env.l0.fails_at(1, Status::BadArg, Op::Unmap, &args::vm(0).list(list))?;
    guest.finds_nothing_at(TEST.gpa)?;
    verify(&guest, TEST.gpa + PAGE, 3, 11)
}

fn protect_write(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = with_pages(env, 2)?;
    guest.does(code::store(), &[(gpr::RDI, TEST.gpa), (gpr::RAX, 10)])?;
    protect(&guest, TEST.gpa, 1, READ_ONLY)?;
    same!(guest.reads(TEST.gpa)?, 10, "a load from a page without WRITE");
    store_fails(env, &guest, TEST.gpa, frames)?;
    guest.does(code::store(), &[(gpr::RDI, TEST.gpa + PAGE), (gpr::RAX, 3)])?;
    // So from the start, too.
    guest.unmap(TEST.gpa, 1)?;
    guest.map(&[MapRange { access: READ_ONLY.bits(), ..lists::map(TEST.gpa, frames, 1) }])?;
    same!(guest.reads(TEST.gpa)?, 10, "a load from a page mapped without WRITE");
    store_fails(env, &guest, TEST.gpa, frames)
}

/// The refused store is repeated by the next RUN, and succeeds once it may.
fn protect_and_back(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = with_pages(env, 1)?;
    for round in 0..10 {
        protect(&guest, TEST.gpa, 1, READ_ONLY)?;
        store_fails(env, &guest, TEST.gpa, frames)?;
        let expected = !ram::load(frames);
        protect(&guest, TEST.gpa, 1, lists::ALL)?;
        guest.done()?;
        same!(ram::load(frames), expected, "the store of round {round}, repeated");
    }
    Ok(())
}

fn protect_parts(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = with_pages(env, 8)?;
    protect(&guest, TEST.gpa + 2 * PAGE, 3, READ_ONLY)?;
    for page in 0..8 {
        let gpa = TEST.gpa + page * PAGE;
        if (2..5).contains(&page) {
            store_fails(env, &guest, gpa, frames + page * PAGE)?;
        } else {
            guest.does(code::store(), &[(gpr::RDI, gpa), (gpr::RAX, 10 + page)])?;
        }
    }
    verify(&guest, TEST.gpa, 8, 10)
}

/// A page that is not mapped fails the entry, of which nothing is done.
fn protect_nothing(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = with_pages(env, 4)?;
    for (gpa, pages, absent) in [
        (TEST.gpa, 8, TEST.gpa + 4 * PAGE),
        (HOLE, 1, HOLE),
        (TEST.gpa + 3 * PAGE, 2, TEST.gpa + 4 * PAGE),
    ] {
        let entries =
            [lists::protect(TEST.gpa + PAGE, 1, READ_ONLY), lists::protect(gpa, pages, READ_ONLY)];
        let list = args::vm(0).list(lists::of(&entries));
        let value = env.l0.fails_at(1, Status::NoSuch, Op::Protect, &list)?;
        same!(value, absent, "value: the first page that is not mapped");
    }
    store_fails(env, &guest, TEST.gpa + PAGE, frames + PAGE)?;
    for page in [0, 3] {
        guest.does(code::store(), &[(gpr::RDI, TEST.gpa + page * PAGE), (gpr::RAX, 1)])?;
    }
    Ok(())
}

fn protect_form(env: &mut Env<'_>) -> Verdict {
    let (_, frames) = with_pages(env, 4)?;
    let good = lists::protect(TEST.gpa, 1, lists::ALL);
    let cases = [
        ("an L1 address", MapRange { l1: frames, ..good }),
        ("no access", MapRange { access: 0, ..good }),
        ("WRITE alone", MapRange { access: 2, ..good }),
        ("an undefined access", MapRange { access: 15, ..good }),
        ("GPA misaligned", MapRange { gpa: TEST.gpa + 8, ..good }),
        ("no pages", MapRange { pages: 0, ..good }),
        ("outside all regions", MapRange { gpa: DEVICE, ..good }),
    ];
    for (name, entry) in cases {
        let list = args::vm(0).list(lists::of(&[good, entry]));
        env.l0.fails_at(1, Status::BadArg, Op::Protect, &list).case(format_args!("{name}"))?;
    }
    if !env.has(Features::EXEC_CONTROL) {
        let list = lists::of(&[lists::protect(TEST.gpa, 1, Access::READ)]);
        env.l0.fails_at(0, Status::NotSupported, Op::Protect, &args::vm(0).list(list))?;
    }
    Ok(())
}

fn protect_again(env: &mut Env<'_>) -> Verdict {
    let (guest, frames) = with_pages(env, 4)?;
    let list = lists::of(&[
        lists::protect(TEST.gpa, 4, READ_ONLY),
        lists::protect(TEST.gpa + PAGE, 1, lists::ALL),
    ]);
    for _ in 0..3 {
        env.l0.ok(Op::Protect, &args::vm(0).list(list))?;
        store_fails(env, &guest, TEST.gpa, frames)?;
        guest.does(code::store(), &[(gpr::RDI, TEST.gpa + PAGE), (gpr::RAX, 11)])?;
    }
    verify(&guest, TEST.gpa, 4, 10)
}

fn execute(env: &mut Env<'_>) -> Verdict {
    env.needs(Features::EXEC_CONTROL, "EXEC_CONTROL")?;
    let (guest, frames) = with_pages(env, 1)?;
    ram::write_bytes(frames, code::counts());
    let set = [(gpr::RDI, TEST.gpa), (gpr::RAX, 4)];
    same!(guest.does(code::jumps(), &set)?, 4, "a program in the page");
    protect(&guest, TEST.gpa, 1, Access::READ | Access::WRITE)?;
    let exit = guest.exits(code::jumps(), &set)?;
    holds!(matches!(exit, Exit::Protected { .. }), "a fetch without EXECUTE gave {exit:x?}");
    guest.reads(TEST.gpa)?;
    protect(&guest, TEST.gpa, 1, lists::ALL)?;
    same!(guest.does(code::jumps(), &set)?, 4, "the program, allowed again");
    Ok(())
}

fn fault_address(env: &mut Env<'_>) -> Verdict {
    env.needs(Features::FAULT_ADDRESS, "FAULT_ADDRESS")?;
    let (guest, _) = with_pages(env, 1)?;
    protect(&guest, TEST.gpa, 1, READ_ONLY)?;
    let at = |gpa| [(gpr::RDI, gpa), (gpr::RAX, 0)];
    let cases = [
        (code::load(), HOLE + 8, Kind::Read, false),
        (code::store(), HOLE + 16, Kind::Write, false),
        (code::jumps(), HOLE + 32, Kind::Fetch, false),
        (code::store(), TEST.gpa + 24, Kind::Write, true),
    ];
    for (program, gpa, kind, protected) in cases {
        let exit = guest.exits(program, &at(gpa))?;
        let (address, access) = (Some(gpa), Some(kind));
        let expected = match protected {
            true => Exit::Protected { gpa: address, access },
            false => Exit::Unmapped { gpa: address, access },
        };
        same!(exit, expected, "the exit of a {kind:?} of {gpa:#x}");
    }
    Ok(())
}

/// The same access exits again until something is mapped there, then it is done once.
fn unmapped_again(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frame = ram::pages(1);
    ram::store(frame, 99);
    guest.start(0, code::load(), &[(gpr::RDI, HOLE)])?;
    for _ in 0..5 {
        let exit = guest.run()?;
        holds!(matches!(exit, Exit::Unmapped { .. }), "{exit:x?}");
    }
    guest.map(&[lists::map(HOLE, frame, 1)])?;
    same!(guest.done()?, 99, "what the load found in the end");
    if env.has(Features::FAULT_ADDRESS) {
        return Ok(());
    }
    // Where addresses are not told, VALID flags that are set anyhow must be right.
    guest.unmap(HOLE, 1)?;
    match guest.exits(code::load(), &[(gpr::RDI, HOLE)])? {
        Exit::Unmapped { gpa, .. } if gpa.is_none_or(|gpa| gpa == HOLE) => Ok(()),
        other => wrong!("a load from {HOLE:#x} gave {other:x?}"),
    }
}
