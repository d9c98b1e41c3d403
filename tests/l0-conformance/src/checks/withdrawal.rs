//! Withdrawal of features (spec section 8.2). Only where the command line says after how many
//! seconds L0 will withdraw everything: `only=withdrawal withdraw=5`.

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
        layout::{HOLE, REGIONS, TEST},
    },
    runtime::{clock, cpu, ram, smp},
    same, skip,
    tap::Verdict,
};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use pv_abi::l0::{Exit, Features, Op, Status, list::MsrValue, page::offset, regs::gpr};

pub const GROUP: Group = Group {
    name: "withdrawal",
    checks: &[check("everything", "L0-WD-1 L0-WD-2 L0-WD-3 L0-WD-5 L0-DISC-6", everything)],
};

/// Seconds beyond those that were named.
const PATIENCE: u64 = 10;

fn everything(env: &mut Env<'_>) -> Verdict {
    let Some(seconds) = env.options.withdraw else { return skip!("no withdraw=SECONDS") };
    let first = env.l0.ok(Op::Query, &args::none())?.generation;
    let guest = Guest::new(env)?;
    let frame = ram::pages(1);
    guest.map(&[lists::map(TEST.gpa, frame, 1)])?;
    let until = clock::after((seconds + PATIENCE) * 1_000_000);
    guest.start(0, code::spins(), &[(15, until)])?;
    let running = run_until_withdrawn(env, &guest, first, until)?;
    let answer = env.l0.ok(Op::Query, &args::none())?;
    holds!(
        answer.generation != first,
        "generation is {first} after {seconds} s and {PATIENCE} more"
    );
    same!(answer.features, 0, "features that are enabled and not withdrawn");
    if let Some(exit) = running {
        same!(exit, Exit::Kicked, "the exit of the RUN in progress");
    }
    refused(env)?;
    served(env, &guest)?;
    // It does not come back before RESET, but then.
    env.l0.refuses(Status::Withdrawn, Op::CreateVm, &args::vm(0).list(lists::of(&REGIONS)))?;
    env.l0.ok(Op::Reset, &args::none())?;
    let offered = env.l0.ok(Op::Query, &args::none())?.value;
    env.l0.ok(Op::Enable, &args::none().arg(0, offered))?;
    same!(env.l0.answer().generation, answer.generation, "generation after RESET and ENABLE");
    if Features::from_bits_truncate(offered as u32).contains(Features::ASSIST) {
        let guest = Guest::new(env)?;
        same!(guest.does(code::counts(), &[(gpr::RAX, 5)])?, 5, "EAX of a new VM");
    }
    Ok(())
}

/// Waits until generation changes, while the VM runs on another CPU if there is one; the exit of
/// that RUN.
fn run_until_withdrawn(
    env: &Env<'_>,
    guest: &Guest,
    first: u32,
    until: u64,
) -> Verdict<Option<Exit>> {
    let wait = || -> Verdict {
        while env.l0.ok(Op::Query, &args::none())?.generation == first && cpu::tsc() < until {
            clock::nap(20_000);
        }
        Ok(())
    };
    if smp::count() == 0 {
        wait()?;
        return Ok(None);
    }
    let second = env.second()?;
    let status = AtomicU64::new(0);
    let runner = || {
        let control = pv_abi::l0::run::RunControl { deadline: until, ..control() };
        status.store(second.l0.run(guest.vm, 0, &control).0.raw().into(), SeqCst);
    };
    smp::beside(second.cpu, &runner, wait)?;
    same!(status.load(SeqCst), 0, "status of the RUN in progress");
    Ok(Some(Exit::decode(&second.l0.get(offset::EXIT))))
}

/// What needs a feature answers WITHDRAWN.
fn refused(env: &Env<'_>) -> Verdict {
    let frame = ram::pages(1);
    let map = lists::of(&[lists::map(HOLE, frame, 1)]);
    let calls = [
        (Op::CreateVm, args::vm(1).list(lists::of(&REGIONS))),
        (Op::CreateVcpu, args::vcpu(0, 1)),
        (Op::Map, args::vm(0).list(map)),
        (Op::Run, args::vcpu(0, 0)),
        (Op::SetRegs, args::vcpu(0, 0).flags(1)),
        (Op::SetCpuid, args::vcpu(0, 0).list(map)),
        (Op::DirtyStart, args::vm(0)),
        (Op::Unshare, args::vm(0).list(lists::of(&[lists::unmap(TEST.gpa, 1)]))),
        (Op::SetGsi, args::vm(0)),
    ];
    let offered = env.info.features;
    let mut calls = calls.iter().filter(|(op, _)| offered.contains(op.needs()));
    calls.try_for_each(|(op, with)| env.l0.refuses(Status::Withdrawn, *op, with))
}

/// What L1 needs to take its guest back goes on.
fn served(env: &Env<'_>, guest: &Guest) -> Verdict {
    let vcpu = args::vcpu(0, 0);
    let xsave = List { address: ram::pages(4), count: env.info.limits.xsave_bytes };
    let msr = lists::of(&[MsrValue { index: 0x277, ..MsrValue::default() }]);
    env.l0.ok(Op::Kick, &vcpu)?;
    env.l0.ok(Op::GetRegs, &vcpu.flags(15))?;
    env.l0.ok(Op::GetXsave, &vcpu.list(xsave))?;
    env.l0.ok(Op::GetMsrs, &vcpu.list(msr))?;
    if env.has(Features::PRIVATE) {
        env.l0.ok(Op::Share, &args::vm(0).list(lists::of(&[lists::unmap(TEST.gpa, 1)])))?;
    }
    guest.unmap(TEST.gpa, 1)?;
    guest.destroy()
}
