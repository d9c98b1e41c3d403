//! RESET (spec section 8.3).

use super::{Group, check};
use crate::{
    env::Env,
    l0::{
        args::{self, With},
        lists,
    },
    l2::{
        code,
        guest::Guest,
        layout::{self, REGIONS},
    },
    runtime::{ram, smp},
    same,
    tap::Verdict,
};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use pv_abi::l0::{Features, Op, Status, op::flags::CreateVm, regs::gpr};

pub const GROUP: Group = Group {
    name: "reset",
    checks: &[
        check("drops_everything", "L0-RST-1", drops_everything),
        check("drops_other_pages", "L0-RST-1 L0-CALL-6", drops_other_pages),
        check("generation_goes_on", "L0-RST-1", generation_goes_on),
        check("before_setup_of_others", "L0-RST-3", before_setup_of_others),
        check("again_and_again", "L0-RST-1 L0-FEAT-2 L0-SEC-3", again_and_again),
        check("leaves_memory", "L0-RST-1 L0-MAP-8", leaves_memory),
    ],
};

fn drops_everything(env: &mut Env<'_>) -> Verdict {
    let vms = env.info.limits.vms.min(3);
    for vm in 0..vms {
        Guest::with(env, vm, CreateVm::empty())?;
    }
    let answer = env.l0.ok(Op::Reset, &args::none())?;
    same!(answer.features, 0, "features after RESET");
    env.l0.refuses(Status::NotSupported, Op::DestroyVm, &args::vm(0))?;
    env.enable(env.info.features)?;
    for vm in 0..vms {
        env.l0.refuses(Status::NoSuch, Op::DestroyVm, &args::vm(vm))?;
        env.l0.ok(Op::CreateVm, &args::vm(vm).list(lists::of(&REGIONS)))?;
    }
    Ok(())
}

/// Pages of other vCPUs are gone; they may register again.
fn drops_other_pages(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    env.l0.ok(Op::Reset, &args::none())?;
    let status = AtomicU32::new(0);
    let query = || status.store(second.l0.call(Op::Query, &args::none()).status.raw(), SeqCst);
    smp::beside(second.cpu, &query, || ());
    same!(Status::from_raw(status.load(SeqCst)), Status::NotServed, "QUERY of another vCPU");
    smp::beside(second.cpu, &|| status.store(second.l0.setup().raw(), SeqCst), || ());
    same!(Status::from_raw(status.load(SeqCst)), Status::Ok, "SETUP of another vCPU");
    Ok(())
}

fn generation_goes_on(env: &mut Env<'_>) -> Verdict {
    let before = env.l0.ok(Op::Query, &args::none())?.generation;
    env.l0.ok(Op::Reset, &args::none())?;
    let after = env.l0.ok(Op::Query, &args::none())?.generation;
    crate::holds!(after.wrapping_sub(before) < 1 << 16, "generation went from {before} to {after}");
    Ok(())
}

/// As an L1 that was started anew: SETUP of another page, RESET, and all is there.
fn before_setup_of_others(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.does(code::counts(), &[])?;
    let other = crate::l0::Caller::new(env.l0.way);
    same!(other.setup(), Status::Ok, "SETUP of another page");
    let verdict = other.ok(Op::Reset, &args::none()).and(other.ok(Op::Query, &args::none()));
    same!(env.l0.setup(), Status::Ok, "SETUP of the first page");
    same!(verdict?.features, 0, "features after RESET");
    env.enable(env.info.features)?;
    let guest = Guest::new(env)?;
    same!(guest.does(code::counts(), &[(gpr::RAX, 3)])?, 3, "EAX of a new VM's program");
    Ok(())
}

fn again_and_again(env: &mut Env<'_>) -> Verdict {
    for round in 0..100 {
        env.l0.ok(Op::Reset, &args::none())?;
        env.enable(if round % 2 == 0 { env.info.features } else { Features::ASSIST })?;
        let mark = ram::mark();
        if round % 10 == 0 {
            let guest = Guest::new(env)?;
            same!(guest.does(code::counts(), &[(gpr::RAX, round)])?, round as u32, "EAX");
        } else {
            env.l0.ok(Op::CreateVm, &args::vm(0).list(lists::of(&REGIONS)))?;
            env.l0.ok(Op::CreateVcpu, &args::vcpu(0, 0))?;
        }
        ram::release(mark);
    }
    Ok(())
}

/// What was mapped and not private is as L2 left it.
fn leaves_memory(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.does(code::store(), &[(gpr::RDI, layout::DATA), (gpr::RAX, 0x1234)])?;
    let before = ram::checksum(guest.base, layout::DATA_END);
    env.l0.ok(Op::Reset, &args::none())?;
    same!(ram::checksum(guest.base, layout::DATA_END), before, "checksum of the frames");
    same!(ram::load(guest.at(layout::DATA)), 0x1234, "what L2 wrote");
    Ok(())
}
