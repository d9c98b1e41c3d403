//! Calls of two L1 vCPUs at once about the same things, and pages that change while L0 reads them
//! (spec sections 3.3, 4.1, 9).

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
        layout::{REGIONS, TEST},
    },
    runtime::{
        clock,
        ram::{self, PAGE},
        smp,
    },
    same,
    tap::{Case, Verdict},
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use pv_abi::l0::{Op, Status, page::offset, regs::gpr};

pub const GROUP: Group = Group {
    name: "race",
    checks: &[
        check("map_and_unmap", "L0-OP-3 L0-SEC-3", map_and_unmap),
        check("create_and_destroy", "L0-OP-3 L0-VM-1", create_and_destroy),
        check("one_vcpu_from_two", "L0-RUN-7 L0-OP-3", one_vcpu_from_two),
        check("arguments_that_change", "L0-PAGE-1 L0-SEC-3", arguments_that_change),
        check("list_that_changes", "L0-LIST-1 L0-SEC-1", list_that_changes),
        check("setup_against_calls", "L0-SETUP-5 L0-SEC-3", setup_against_calls),
        check("reset_against_calls", "L0-RST-1 L0-SEC-3", reset_against_calls),
    ],
};

const ROUNDS: u64 = 300;

/// Runs `job` again and again on the other CPU while `here` runs; how often it ran.
fn meanwhile<R>(
    second: &crate::env::Second,
    job: impl Fn() + Sync,
    here: impl FnOnce() -> R,
) -> (R, u64) {
    let stop = AtomicBool::new(false);
    let turns = AtomicU64::new(0);
    let again = || {
        while !stop.load(SeqCst) {
            job();
            turns.fetch_add(1, SeqCst);
        }
    };
    let result = smp::beside(second.cpu, &again, || {
        clock::nap(1000);
        let result = here();
        stop.store(true, SeqCst);
        result
    });
    (result, turns.load(SeqCst))
}

/// One CPU maps and unmaps a page, the other too: every call succeeds, in some order.
fn map_and_unmap(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = Guest::new(env)?;
    let frames = ram::pages(8);
    (0..8).for_each(|page| ram::store(frames + page * PAGE, 40 + page));
    let map = args::vm(0).list(lists::of(&[lists::map(TEST.gpa, frames, 8)]));
    let unmap =
        args::vm(0).list(lists::of(&[lists::unmap(TEST.gpa + PAGE, 3), lists::unmap(TEST.gpa, 8)]));
    let wrong = AtomicU64::new(0);
    let theirs = || {
        for (op, with) in [(Op::Map, &map), (Op::Unmap, &unmap)] {
            let status = second.l0.call_list(op, with, 32).status;
            if status != Status::Ok {
                wrong.store(u64::from(status.raw()) << 32 | u64::from(op.raw()), SeqCst);
            }
        }
    };
    let (verdict, turns) = meanwhile(&second, theirs, || {
        (0..ROUNDS).try_for_each(|round| {
            env.l0.ok(Op::Map, &map).case(format_args!("round {round}"))?;
            env.l0.ok(Op::Unmap, &unmap).case(format_args!("round {round}"))?;
            Ok(())
        })
    });
    verdict?;
    same!(wrong.load(SeqCst), 0, "status << 32 | operation of the other CPU, {turns} turns");
    guest.finds_nothing_at(TEST.gpa)?;
    env.l0.ok(Op::Map, &map)?;
    super::lists::verify(&guest, TEST.gpa, 8, 40)
}

/// Both create and destroy VM 0: OK, EXISTS or NO_SUCH, and in the end there is one or none.
fn create_and_destroy(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let regions = lists::of(&REGIONS);
    let with = args::vm(0).list(regions);
    let odd = AtomicU64::new(0);
    let fits = |op: Op, status: Status| match op {
        Op::CreateVm => matches!(status, Status::Ok | Status::Exists),
        Op::CreateVcpu => matches!(status, Status::Ok | Status::Exists | Status::NoSuch),
        _ => matches!(status, Status::Ok | Status::NoSuch),
    };
    const OPS: [Op; 3] = [Op::CreateVm, Op::CreateVcpu, Op::DestroyVm];
    let theirs = || {
        for op in OPS {
            let status = second.l0.call(op, &with).status;
            if !fits(op, status) {
                odd.store(u64::from(status.raw()) << 32 | u64::from(op.raw()), SeqCst);
            }
        }
    };
    let (verdict, turns) = meanwhile(&second, theirs, || {
        (0..ROUNDS / 5).try_for_each(|round| {
            for op in OPS {
                let status = env.l0.call(op, &with).status;
                holds!(fits(op, status), "{op:?} answered {status:?} in round {round}");
            }
            Ok(())
        })
    });
    verdict?;
    same!(odd.load(SeqCst), 0, "status << 32 | operation of the other CPU, {turns} turns");
    env.l0.call(Op::DestroyVm, &args::vm(0));
    let guest = Guest::new(env)?;
    same!(guest.does(code::counts(), &[(gpr::RAX, 2)])?, 2, "EAX of a VM afterwards");
    Ok(())
}

/// Both run vCPU 0: each RUN is OK or BUSY, and no done of the program is seen twice or lost.
fn one_vcpu_from_two(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = Guest::new(env)?;
    guest.start(0, code::counts(), &[(gpr::RAX, 0)])?;
    let seen = [AtomicU64::new(0), AtomicU64::new(0)];
    let odd = AtomicU64::new(0);
    let run = |l0: &crate::l0::Caller, seen: &AtomicU64| {
        let (status, raw) = l0.run(0, 0, &control());
        match (status, pv_abi::l0::Exit::decode(&raw)) {
            (Status::Ok, pv_abi::l0::Exit::Io { port: crate::l2::layout::DONE_PORT, .. }) => {
                seen.fetch_add(1, SeqCst);
            }
            (Status::Busy, _) | (Status::Ok, pv_abi::l0::Exit::Kicked) => {}
            (status, _) => odd.store(u64::from(status.raw()) << 32 | u64::from(raw.reason), SeqCst),
        }
    };
    let ((), turns) = meanwhile(
        &second,
        || run(&second.l0, &seen[1]),
        || {
            (0..ROUNDS).for_each(|_| run(&env.l0, &seen[0]));
        },
    );
    same!(odd.load(SeqCst), 0, "status << 32 | reason, {turns} turns of the other CPU");
    let done = seen[0].load(SeqCst) + seen[1].load(SeqCst);
    same!(u64::from(guest.done()?), done, "EAX: how often the program was done");
    Ok(())
}

/// Another CPU writes other values into the arguments all the time: L0 sees some of them.
fn arguments_that_change(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = Guest::new(env)?;
    let frames = ram::pages(4);
    let lists = [
        lists::of(&[lists::map(TEST.gpa, frames, 1)]),
        List { address: u64::MAX - 7, count: u32::MAX },
        List { address: env.no_ram(), count: 1 },
        List { address: frames + 1, count: 0 },
    ];
    let args_at = env.l0.page + offset::ARGS as u64;
    let turn = AtomicU64::new(0);
    let scribble = || {
        let turn = turn.fetch_add(1, SeqCst);
        let list = lists[turn as usize % lists.len()];
        ram::store(args_at + 0x10, list.address);
        ram::store32(args_at + 0x0c, list.count);
        ram::store32(args_at, [0, 1, u32::MAX][turn as usize % 3]);
        ram::store32(args_at + 8, [0, 1, 0, u32::MAX][turn as usize % 4]);
    };
    let (verdict, _) = meanwhile(&second, scribble, || {
        (0..ROUNDS).try_for_each(|round| {
            let op = [
                Op::Map,
                Op::Unmap,
                Op::Protect,
                Op::GetMsrs,
                Op::GetRegs,
                Op::GetXsave,
                Op::SetCpuid,
            ][round as usize % 7];
            let answer = env.l0.word(op.word());
            let known = !matches!(
                answer.status,
                Status::NotServed | Status::Unknown(_) | Status::Internal | Status::UnknownOp
            );
            holds!(known, "{op:?} answered {:?} in round {round}", answer.status);
            Ok(())
        })
    });
    verdict?;
    guest.unmap(TEST.gpa, 1)?;
    same!(guest.does(code::counts(), &[(gpr::RAX, 8)])?, 8, "EAX of the VM afterwards");
    Ok(())
}

/// Another CPU flips a MAP entry's L1 address between RAM and none: what is mapped is RAM, for L0
/// uses the copy that it checked.
fn list_that_changes(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = Guest::new(env)?;
    let frame = ram::pages(1);
    ram::store(frame, 0x777);
    let list = lists::of(&[lists::map(TEST.gpa, frame, 1)]);
    let wild = [env.no_ram(), frame, 1 << 51, frame, frame + 8, frame];
    let turn = AtomicU64::new(0);
    let scribble = || {
        let turn = turn.fetch_add(1, SeqCst) as usize;
        ram::store(list.address + 8, wild[turn % wild.len()]);
    };
    let with = args::vm(0).list(list);
    let unmap = args::vm(0).list(lists::of(&[lists::unmap(TEST.gpa, 1)]));
    let (verdict, _) = meanwhile(&second, scribble, || {
        (0..ROUNDS).try_for_each(|round| {
            let status = env.l0.call(Op::Map, &with).status;
            match status {
                Status::Ok => {
                    same!(guest.reads(TEST.gpa)?, 0x777, "what was mapped in round {round}")
                }
                Status::NotYours | Status::BadArg => {}
                other => return crate::wrong!("MAP answered {other:?} in round {round}"),
            }
            env.l0.ok(Op::Unmap, &unmap)?;
            Ok(())
        })
    });
    verdict
}

/// One CPU moves its page while the other calls.
fn setup_against_calls(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let pages = [second.l0, crate::l0::Caller::new(env.l0.way)];
    let odd = AtomicU64::new(0);
    let turn = AtomicU64::new(0);
    let theirs = || {
        let turn = turn.fetch_add(1, SeqCst) as usize % 2;
        let status = pages[turn].setup();
        if status != Status::Ok {
            odd.store(status.raw().into(), SeqCst);
        }
    };
    let (verdict, _) = meanwhile(&second, theirs, || {
        (0..ROUNDS).try_for_each(|_| {
            env.l0.ok(Op::Query, &args::none())?;
            Ok(())
        })
    });
    verdict?;
    same!(odd.load(SeqCst), 0, "the status of the other CPU's SETUP");
    Ok(())
}

/// One CPU resets, the other calls: it is answered as before or after, or not at all.
fn reset_against_calls(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let regions = lists::of(&REGIONS);
    let odd = AtomicU64::new(0);
    let theirs = || {
        for (op, with) in [
            (Op::CreateVm, args::vm(0).list(regions)),
            (Op::CreateVcpu, args::vcpu(0, 0)),
            (Op::GetRegs, args::vcpu(0, 0).flags(1)),
            (Op::Run, args::vcpu(0, 0)),
        ] {
            // Deadline 0: RUN returns at once.
            let status = second.l0.call(op, &with).status;
            match status {
                Status::NotServed => {
                    second.l0.setup();
                }
                Status::Ok
                | Status::Exists
                | Status::NoSuch
                | Status::NotSupported
                | Status::BadState => {}
                other => odd.store(u64::from(other.raw()) << 32 | u64::from(op.raw()), SeqCst),
            }
        }
    };
    let (verdict, _) = meanwhile(&second, theirs, || {
        (0..ROUNDS / 5).try_for_each(|_| {
            env.l0.ok(Op::Reset, &args::none())?;
            // The other may have created a VM already.
            let set = args::none().arg(0, env.info.features.bits().into());
            let status = env.l0.call(Op::Enable, &set).status;
            holds!(matches!(status, Status::Ok | Status::BadState), "ENABLE answered {status:?}");
            Ok(())
        })
    });
    verdict?;
    same!(odd.load(SeqCst), 0, "status << 32 | operation of the other CPU");
    env.l0.ok(Op::Reset, &args::none())?;
    env.enable(env.info.features)?;
    let guest = Guest::new(env)?;
    same!(guest.does(code::counts(), &[(gpr::RAX, 2)])?, 2, "EAX of a VM afterwards");
    Ok(())
}
