//! What things cost, in ticks of the TSC (instructions where the machine counts them). Judges
//! nothing but that the programs end as they should.

use super::{Group, check};
use crate::{
    env::Env,
    l0::{
        args::{self, With},
        lists,
    },
    l2::{
        code,
        guest::{Guest, control},
        layout::TEST,
    },
    runtime::{cpu, ram},
    same,
    tap::Verdict,
};
use pv_abi::l0::{
    Op,
    list::{MsrAction, MsrRange},
    regs::gpr,
};

pub const GROUP: Group = Group {
    name: "measure",
    checks: &[
        check("cpuid", "L0-EXIT-6", cpuid),
        check("msrs", "L0-EXIT-6", msrs),
        check("map", "L0-MAP-1", map),
        check("run", "L0-RUN-6", run),
        check("query", "L0-FEAT-1", query),
    ],
};

/// Turns of a loop.
const TURNS: u64 = 1000;
/// Runs of which the fastest counts.
const TRIES: u32 = 3;

/// Ticks of RUN, from its start to the program's end; the fastest of some.
fn ticks(guest: &Guest, program: &[u8], set: &[(usize, u64)]) -> Verdict<u64> {
    let mut best = u64::MAX;
    for _ in 0..TRIES {
        guest.start(0, program, set)?;
        let start = cpu::tsc();
        guest.done()?;
        best = best.min(cpu::tsc() - start);
    }
    Ok(best)
}

/// Ticks of an instruction of a loop over those of the empty loop.
fn each(guest: &Guest, program: &[u8], set: &[(usize, u64)]) -> Verdict<u64> {
    let empty = ticks(guest, code::empty_loop(), &[(9, TURNS)])?;
    let full = ticks(guest, program, set)?;
    Ok(full.saturating_sub(empty) / TURNS)
}

fn cpuid(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let set = [(gpr::RCX, TURNS), (8, 1)];
    let found = each(&guest, code::cpuid_loop(), &set)?;
    env.measure("cpuid", found, "ticks");
    Ok(())
}

fn msrs(env: &mut Env<'_>) -> Verdict {
    const VALUE: u32 = 0x4000_0200;
    const SHADOW: u32 = VALUE + 1;
    let guest = Guest::new(env)?;
    let rule = |first, action: MsrAction, mask| MsrRange {
        first,
        count: 1,
        action: action.raw(),
        mask,
        ..MsrRange::default()
    };
    let rules = [rule(VALUE, MsrAction::Value, 0), rule(SHADOW, MsrAction::Shadow, u64::MAX)];
    env.l0.ok(Op::SetMsrPolicy, &args::vm(0).list(lists::of(&rules)))?;
    for (name, msr) in [("rdmsr_held", 0x277), ("rdmsr_value", VALUE), ("rdmsr_shadow", SHADOW)] {
        let set = [(gpr::RCX, msr.into()), (9, TURNS)];
        let found = each(&guest, code::rdmsr_loop(), &set)?;
        env.measure(name, found, "ticks");
    }
    Ok(())
}

/// MAP and UNMAP of 512 ranges of a page, and the first touch of each: next to each other, which L0
/// may take for one, and apart.
fn map(env: &mut Env<'_>) -> Verdict {
    let names = ["map_adjoining_range", "first_touch", "unmap_adjoining_range"];
    let apart = ["map_range", "first_touch_apart", "unmap_range"];
    for (names, step) in [(names, ram::PAGE), (apart, 2 * ram::PAGE)] {
        let found = map_cost(env, step)?;
        for (name, ticks) in names.into_iter().zip(found) {
            env.measure(name, ticks, "ticks, of 512 at once");
        }
    }
    Ok(())
}

/// Ticks of a range, MAP, touch and UNMAP, for 512 ranges of a page, each `step` bytes further.
fn map_cost(env: &Env<'_>, step: u64) -> Verdict<[u64; 3]> {
    const RANGES: u64 = 512;
    let guest = Guest::new(env)?;
    let frames = ram::pages(2 * RANGES);
    let map = lists::made(RANGES as u32, |index| {
        let offset = step * u64::from(index);
        lists::map(TEST.gpa + offset, frames + offset, 1)
    });
    let gpa = |index: u32| TEST.gpa + step * u64::from(index);
    let unmap = lists::made(RANGES as u32, |index| lists::unmap(gpa(index), 1));
    let touch = [(gpr::RDI, TEST.gpa), (gpr::RCX, RANGES), (8, step), (gpr::RBX, 1)];
    let mut best = [u64::MAX; 3];
    for _ in 0..TRIES {
        let start = cpu::tsc();
        env.l0.ok(Op::Map, &args::vm(0).list(map))?;
        best[0] = best[0].min(cpu::tsc() - start);
        guest.start(0, code::writes(), &touch)?;
        let start = cpu::tsc();
        guest.done()?;
        best[1] = best[1].min(cpu::tsc() - start);
        let start = cpu::tsc();
        env.l0.ok(Op::Unmap, &args::vm(0).list(unmap))?;
        best[2] = best[2].min(cpu::tsc() - start);
    }
    guest.destroy()?;
    Ok(best.map(|ticks| ticks / RANGES))
}

/// From RUN to the next exit, OUT or HLT, and back.
fn run(env: &mut Env<'_>) -> Verdict {
    const ROUNDS: u64 = 200;
    let guest = Guest::new(env)?;
    guest.start(0, code::counts(), &[(gpr::RAX, 1)])?;
    guest.done()?;
    let start = cpu::tsc();
    for _ in 0..ROUNDS {
        guest.run()?;
    }
    let out = (cpu::tsc() - start) / ROUNDS;
    same!(u64::from(guest.done()?), ROUNDS + 2, "EAX");
    env.measure("run_out", out, "ticks from OUT to OUT");
    guest.start(0, code::halts(), &[])?;
    let start = cpu::tsc();
    for _ in 0..ROUNDS {
        // HLT and OUT in turns.
        guest.l0.run_ok(0, 0, &control())?;
    }
    let both = (cpu::tsc() - start) / ROUNDS;
    env.measure("run_hlt", (2 * both).saturating_sub(out), "ticks from OUT to HLT");
    Ok(())
}

fn query(env: &mut Env<'_>) -> Verdict {
    const ROUNDS: u64 = 200;
    let start = cpu::tsc();
    for _ in 0..ROUNDS {
        env.l0.ok(Op::Query, &args::none())?;
    }
    let found = (cpu::tsc() - start) / ROUNDS;
    env.measure("query", found, "ticks of a call that does nothing");
    Ok(())
}
