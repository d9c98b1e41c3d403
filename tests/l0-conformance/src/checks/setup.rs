//! SETUP: the shared page's registration (spec section 3.2).

use super::{Group, check};
use crate::{
    env::Env,
    l0::{Caller, args},
    runtime::{ram, smp},
    same,
    tap::Verdict,
};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use pv_abi::{
    addr::Hpa,
    l0::{Op, Status, VERSION, op, page::offset},
};

pub const GROUP: Group = Group {
    name: "setup",
    checks: &[
        check("again", "L0-SETUP-1 L0-SETUP-2", again),
        check("moves", "L0-SETUP-2", moves),
        check("gives_back", "L0-SETUP-4", gives_back),
        check("version", "L0-SETUP-3 L0-DISC-5", version),
        check("page_of_another", "L0-SETUP-3 L0-SETUP-5", page_of_another),
        check("bad_pages", "L0-SETUP-3 L0-SEC-1", bad_pages),
        check("one_page_each", "L0-SETUP-5 L0-OP-3", one_page_each),
        check("many_times", "L0-SETUP-2 L0-SEC-3", many_times),
    ],
};

/// Whether the page is the calling vCPU's: QUERY is answered there.
fn serves(caller: &Caller) -> bool {
    caller.call(Op::Query, &args::none()).status == Status::Ok
}

fn again(env: &mut Env<'_>) -> Verdict {
    for _ in 0..3 {
        same!(env.l0.setup(), Status::Ok, "SETUP of the same page");
        same!(env.l0.answer().features, env.info.features.bits(), "enabled features");
        same!(serves(&env.l0), true, "served afterwards");
    }
    Ok(())
}

fn moves(env: &mut Env<'_>) -> Verdict {
    let other = Caller::new(env.l0.way);
    ram::fill(env.l0.page, ram::PAGE, 0xa5);
    let moved = other.setup();
    let served = serves(&other);
    let touched = ram::load(env.l0.page) != 0xa5a5_a5a5_a5a5_a5a5;
    let back = env.l0.setup();
    same!((moved, served, back), (Status::Ok, true, Status::Ok), "SETUP there, QUERY, SETUP back");
    same!(touched, false, "the old page was written");
    same!(env.l0.answer().features, env.info.features.bits(), "enabled features");
    Ok(())
}

fn gives_back(env: &mut Env<'_>) -> Verdict {
    ram::fill(env.l0.page, ram::PAGE, 0xa5);
    let before = ram::checksum(env.l0.page, ram::PAGE);
    env.l0.teardown();
    let after_teardown = ram::checksum(env.l0.page, ram::PAGE);
    env.l0.way.call(Op::Query.word());
    env.l0.teardown();
    let after_all = ram::checksum(env.l0.page, ram::PAGE);
    same!(env.l0.setup(), Status::Ok, "SETUP afterwards");
    same!((after_teardown, after_all), (before, before), "the page's checksum");
    Ok(())
}

fn version(env: &mut Env<'_>) -> Verdict {
    for major in [0, 2, 0x7fff, 0xffff] {
        let other = Caller::new(env.l0.way);
        let status = other.setup_as(major << 16);
        same!(status, Status::BadVersion, "SETUP as {major}.0");
        same!(serves(&env.l0), true, "the old page still serves");
    }
    let minor = env.l0.setup_as(VERSION | 9);
    same!(minor, Status::Ok, "SETUP as 1.9");
    Ok(())
}

fn page_of_another(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let theft = Caller { page: second.l0.page, way: env.l0.way };
    same!(theft.setup(), Status::Exists, "SETUP of a page of another vCPU");
    same!(serves(&env.l0), true, "our own page still serves");
    let found = AtomicU32::new(Status::NotServed.raw());
    smp::beside(
        second.cpu,
        &|| found.store(second.l0.call(Op::Query, &args::none()).status.raw(), SeqCst),
        || (),
    );
    same!(Status::from_raw(found.load(SeqCst)), Status::Ok, "the other's page still serves it");
    Ok(())
}

/// What is no RAM gets no answer, and takes nothing away.
fn bad_pages(env: &mut Env<'_>) -> Verdict {
    let end = env.usable.low_end().next_multiple_of(ram::PAGE);
    for page in [env.no_ram(), 0xfee0_0000, 0xfec0_0000, 0xffff_f000, end] {
        if env.usable.contains(page) {
            continue;
        }
        let Some(word) = op::setup_word(Hpa(page)) else { continue };
        ram::store32(env.l0.page + offset::STATUS as u64, Status::NotServed.raw());
        env.l0.way.call(word);
        same!(
            env.l0.answer().status,
            Status::NotServed,
            "SETUP of {page:#x}: status in the old page"
        );
        same!(serves(&env.l0), true, "SETUP of {page:#x}: the old page serves");
    }
    Ok(())
}

/// Two vCPUs call at once, each through its page.
fn one_page_each(env: &mut Env<'_>) -> Verdict {
    const ROUNDS: u32 = 500;
    let second = env.second()?;
    let wrong = AtomicU32::new(0);
    let query = |l0: &Caller| {
        let answer = l0.call(Op::Query, &args::none());
        answer.status == Status::Ok && answer.value == u64::from(env.info.features.bits())
    };
    let theirs = || {
        (0..ROUNDS).filter(|_| !query(&second.l0)).for_each(|_| {
            wrong.fetch_add(1, SeqCst);
        });
    };
    let ours = smp::beside(second.cpu, &theirs, || (0..ROUNDS).filter(|_| !query(&env.l0)).count());
    same!((ours, wrong.load(SeqCst)), (0, 0), "wrong answers here and there");
    Ok(())
}

fn many_times(env: &mut Env<'_>) -> Verdict {
    let pages = [env.l0, Caller::new(env.l0.way), Caller::new(env.l0.way)];
    for round in 0..600_usize {
        let page = pages[round % 3];
        same!(page.setup(), Status::Ok, "SETUP {round}");
        if round % 7 == 0 {
            page.teardown();
        }
    }
    same!(env.l0.setup(), Status::Ok, "the last SETUP");
    Ok(())
}
