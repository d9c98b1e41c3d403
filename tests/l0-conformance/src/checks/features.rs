//! Features: QUERY, ENABLE, and what is not enabled (spec sections 2.2, 8.1).

use super::{Group, check};
use crate::{
    env::Env,
    l0::{
        args::{self, With},
        lists,
    },
    l2::layout::REGIONS,
    same, skip,
    tap::Verdict,
};
use pv_abi::l0::{Features, Op, Status, op::flags::CreateVm};

pub const GROUP: Group = Group {
    name: "features",
    checks: &[
        check("query", "L0-FEAT-1", query),
        check("none_at_first", "L0-FEAT-2 L0-RST-1", none_at_first),
        check("exact_sets", "L0-FEAT-2", exact_sets),
        check("not_offered", "L0-FEAT-2", not_offered),
        check("needs", "L0-FEAT-2", needs),
        check("with_a_vm", "L0-FEAT-2", with_a_vm),
        check("not_enabled", "L0-OP-1 L0-FEAT-3", not_enabled),
        check("apic_not_enabled", "L0-VM-2 L0-FEAT-3", apic_not_enabled),
        check("whole_l1", "L0-FEAT-2", whole_l1),
        check("generation", "L0-WD-1", generation),
    ],
};

fn query(env: &mut Env<'_>) -> Verdict {
    let answer = env.l0.ok(Op::Query, &args::none())?;
    same!(answer.value, u64::from(env.info.features.bits()), "value of QUERY");
    Ok(())
}

fn none_at_first(env: &mut Env<'_>) -> Verdict {
    env.l0.ok(Op::Reset, &args::none())?;
    let answer = env.l0.ok(Op::Query, &args::none())?;
    same!(answer.features, 0, "features after RESET");
    Ok(())
}

/// Each set that is offered whole and has what it needs, of one feature or all but one.
fn exact_sets(env: &mut Env<'_>) -> Verdict {
    let offered = env.info.features;
    let single = offered.iter();
    let but_one = offered.iter().map(|one| offered.difference(one));
    for set in single.chain(but_one).filter(|set| set.consistent()) {
        env.enable(set)?;
        let answer = env.l0.ok(Op::Query, &args::none())?;
        same!(answer.features, set.bits(), "enabled features");
        same!(answer.value, u64::from(offered.bits()), "offered features");
    }
    Ok(())
}

fn refused(env: &Env<'_>, set: u64) -> Verdict {
    env.l0.refuses(Status::NotSupported, Op::Enable, &args::none().arg(0, set))?;
    same!(env.l0.answer().features, env.info.features.bits(), "enabled features");
    Ok(())
}

fn not_offered(env: &mut Env<'_>) -> Verdict {
    let offered = u64::from(env.info.features.bits());
    for bit in (0..64).filter(|bit| offered >> bit & 1 == 0) {
        refused(env, offered | 1 << bit)?;
    }
    refused(env, u64::MAX)
}

fn needs(env: &mut Env<'_>) -> Verdict {
    let offered = env.info.features;
    let mut tried = 0;
    for feature in offered.iter().filter(|feature| !feature.consistent()) {
        refused(env, feature.bits().into())?;
        tried += 1;
    }
    if tried == 0 { skip!("no feature that needs another") } else { Ok(()) }
}

fn with_a_vm(env: &mut Env<'_>) -> Verdict {
    env.needs(Features::ASSIST, "ASSIST")?;
    env.l0.ok(Op::CreateVm, &args::vm(0).list(lists::of(&REGIONS)))?;
    for set in [env.info.features.bits(), Features::ASSIST.bits(), 0] {
        env.l0.refuses(Status::BadState, Op::Enable, &args::none().arg(0, set.into()))?;
        same!(env.l0.answer().features, env.info.features.bits(), "enabled features");
    }
    env.l0.ok(Op::DestroyVm, &args::vm(0))?;
    env.enable(Features::ASSIST)
}

/// An operation whose feature is not enabled is refused before anything else of it is looked at.
fn not_enabled(env: &mut Env<'_>) -> Verdict {
    env.enable(Features::empty())?;
    let wild = args::vcpu(u32::MAX, u32::MAX).flags(u32::MAX);
    for (op, _) in Op::ALL.iter().filter(|(op, _)| !op.needs().is_empty()) {
        env.l0.refuses(Status::NotSupported, *op, &args::none())?;
        env.l0.refuses(Status::NotSupported, *op, &wild)?;
    }
    if !env.has(Features::ASSIST) {
        return Ok(());
    }
    env.enable(Features::ASSIST)?;
    for (op, _) in Op::ALL.iter().filter(|(op, _)| !Features::ASSIST.contains(op.needs())) {
        env.l0.refuses(Status::NotSupported, *op, &wild)?;
    }
    Ok(())
}

fn apic_not_enabled(env: &mut Env<'_>) -> Verdict {
    env.needs(Features::ASSIST, "ASSIST")?;
    env.enable(env.info.features.difference(Features::IN_L0_APIC))?;
    let with = args::vm(0).flags(CreateVm::APIC.bits()).list(lists::of(&REGIONS));
    env.l0.refuses(Status::NotSupported, Op::CreateVm, &with)
}

/// What one vCPU enables, another finds enabled.
fn whole_l1(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let set = env.info.features.intersection(Features::ASSIST);
    env.enable(set)?;
    crate::runtime::smp::beside(
        second.cpu,
        &|| {
            second.l0.call(Op::Query, &args::none());
        },
        || (),
    );
    same!(second.l0.answer().features, set.bits(), "features that another vCPU sees");
    Ok(())
}

/// Without a withdrawal, generation stays.
fn generation(env: &mut Env<'_>) -> Verdict {
    let first = env.l0.ok(Op::Query, &args::none())?.generation;
    env.enable(Features::empty())?;
    env.enable(env.info.features)?;
    same!(env.l0.answer().generation, first, "generation after ENABLE");
    Ok(())
}
