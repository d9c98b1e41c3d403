//! The TLB contract while L2 runs on other CPUs (spec section 5.4).
//!
//! A program on each further CPU's vCPU reads one page and adds to a counter in it, without end. L1
//! takes the page away, poisons the frame it was, and gives another. A read that finds the poison,
//! or a count that goes on after the call returned, used the old mapping.

use super::{Group, check};
use crate::{
    env::{Env, Second},
    holds,
    l0::{
        args::{self, With},
        lists,
    },
    l2::{
        code,
        guest::{Guest, control},
        layout::{self, TEST},
    },
    runtime::{clock, cpu, ram, smp},
    same,
    tap::{Case, Verdict, Wrong},
};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use pv_abi::l0::{Exit, Op, Status, list::Access, regs::gpr, run::RunControl};

pub const GROUP: Group = Group {
    name: "tlb",
    checks: &[
        check("unmap_flips", "L0-TLB-1 L0-TLB-2 L0-MAP-7", unmap_flips),
        check("protect_flips", "L0-TLB-1 L0-TLB-2 L0-TLB-4", protect_flips),
        check("failed_unmap_flips", "L0-TLB-3", failed_unmap_flips),
        check("own_tables", "L0-TLB-5", own_tables),
        check("reset_of_a_running_vm", "L0-TLB-1 L0-RST-1", reset_of_a_running_vm),
    ],
};

const POISON: u64 = 0xbad0_bad0_bad0_bad0;
const GOOD: u64 = 0x600d;
/// Where vCPU `n` counts stale reads, and at + 8 its turns.
const fn counts(vcpu: u32) -> u64 {
    layout::DATA + 64 * vcpu as u64
}

/// Runs one vCPU until told to stop; exits other than for a missing mapping or time are counted.
struct Runner {
    second: Second,
    vcpu: u32,
    stop: AtomicBool,
    exits: AtomicU64,
    odd: AtomicU32,
}

impl Runner {
    fn run(&self, guest: &Guest) {
        while !self.stop.load(SeqCst) {
            let control = RunControl { deadline: clock::after(2_000), ..control() };
            let (status, raw) = self.second.l0.run(guest.vm, self.vcpu, &control);
            match (status, Exit::decode(&raw)) {
                (
                    Status::Ok,
                    Exit::Unmapped { .. } | Exit::Protected { .. } | Exit::Deadline | Exit::Kicked,
                ) => {
                    self.exits.fetch_add(1, SeqCst);
                }
                (status, _) => {
                    let ok = status == Status::Ok;
                    self.odd.store(if ok { raw.reason | 1 << 16 } else { status.raw() }, SeqCst);
                    return;
                }
            }
        }
    }
}

/// Makes a VM and a runner for each further CPU, each with its own vCPU.
fn runners(env: &Env<'_>) -> Verdict<(Guest, ArrayVec<Runner, { smp::MOST }>)> {
    let first = env.second()?;
    let guest = Guest::new(env)?;
    let mut all = ArrayVec::new();
    let most = (env.info.limits.vcpus as usize).min(smp::count());
    for index in 0..most {
        let second = if index == 0 { first } else { env.further(index)? };
        let vcpu = index as u32;
        if vcpu > 0 {
            guest.add_vcpu(env, vcpu)?;
        }
        let set = [
            (gpr::RDI, TEST.gpa),
            (gpr::RBX, POISON),
            (gpr::RSI, counts(vcpu)),
            (15, clock::after(60_000_000 + 50_000 * env.options.flips)),
        ];
        guest.start(vcpu, code::flips(), &set)?;
        all.push(Runner {
            second,
            vcpu,
            stop: AtomicBool::new(false),
            exits: AtomicU64::new(0),
            odd: AtomicU32::new(0),
        });
    }
    Ok((guest, all))
}

/// Runs `here` while all runners run; they stop afterwards.
fn while_all_run<R>(guest: &Guest, runners: &[Runner], here: impl FnOnce() -> R) -> R {
    match runners {
        [] => here(),
        [first, rest @ ..] => smp::beside(first.second.cpu, &|| first.run(guest), || {
            let result = while_all_run(guest, rest, here);
            first.stop.store(true, SeqCst);
            // Where deadlines are ignored.
            guest.l0.call(Op::Kick, &args::vcpu(guest.vm, first.vcpu));
            result
        }),
    }
}

/// Judges what runners saw, after the race.
fn judge(guest: &Guest, runners: &[Runner]) -> Verdict {
    for runner in runners {
        let vcpu = runner.vcpu;
        same!(
            runner.odd.load(SeqCst),
            0,
            "vCPU {vcpu}: a status, or a reason with bit 16, that ended it"
        );
        same!(ram::load(guest.at(counts(vcpu))), 0, "vCPU {vcpu}: reads through the old mapping");
        let turns = ram::load(guest.at(counts(vcpu)) + 8);
        holds!(turns > 0, "vCPU {vcpu} never got to its page: nothing was raced");
    }
    Ok(())
}

/// Whether the counter in `frame` stands still for a moment; at every eighth turn for so long that
/// the others run, even where CPUs share one of the machine's.
fn stands_still(frame: u64, turn: u64) -> Verdict {
    let before = ram::load(frame + 8);
    if turn.is_multiple_of(8) {
        clock::nap(5000);
    }
    for look in 0..40 {
        let now = ram::load(frame + 8);
        holds!(
            now == before,
            "a write through the old mapping, seen at look {look}: {now:#x}, was {before:#x}"
        );
        core::hint::spin_loop();
    }
    Ok(())
}

/// Waits, a while at most, until a program has written to `frame`. Where CPUs share one of the
/// machine's, the others must get it at times.
fn await_writer(frame: u64) {
    let before = ram::load(frame + 8);
    for _ in 0..200 {
        if ram::load(frame + 8) != before {
            return;
        }
        clock::nap(50);
    }
}

/// UNMAP and MAP of another frame, again and again.
fn unmap_flips(env: &mut Env<'_>) -> Verdict {
    flips(env, "unmap_flip", env.options.flips, |guest, unmaps| {
        guest.l0.ok(Op::Unmap, unmaps)?;
        Ok(())
    })
}

/// The same with an UNMAP whose second entry fails.
fn failed_unmap_flips(env: &mut Env<'_>) -> Verdict {
    let list = lists::of(&[lists::unmap(TEST.gpa, 1), lists::unmap(TEST.gpa + 1, 1)]);
    let broken = args::vm(0).list(list);
    flips(env, "failed_unmap_flip", fewer(env.options.flips), |guest, _| {
        guest.l0.fails_at(1, Status::BadArg, Op::Unmap, &broken)?;
        Ok(())
    })
}

/// A tenth, but enough to see something.
fn fewer(flips: u64) -> u64 {
    (flips / 10).max(flips.min(50))
}

fn flips(
    env: &mut Env<'_>,
    name: &'static str,
    count: u64,
    take_away: impl Fn(&Guest, &pv_abi::l0::page::Args) -> Verdict,
) -> Verdict {
    let (guest, runners) = runners(env)?;
    let frames = [ram::pages(1), ram::pages(1)];
    let maps = frames.map(|frame| args::vm(0).list(lists::of(&[lists::map(TEST.gpa, frame, 1)])));
    let unmaps = args::vm(0).list(lists::of(&[lists::unmap(TEST.gpa, 1)]));
    let start = cpu::tsc();
    let flip = |turn: u64| -> Verdict {
        let this = frames[turn as usize % 2];
        ram::store(this, GOOD);
        guest.l0.ok(Op::Map, &maps[turn as usize % 2])?;
        if turn.is_multiple_of(4) {
            await_writer(this);
        }
        take_away(&guest, &unmaps)?;
        ram::store(this, POISON);
        stands_still(this, turn)
    };
    let verdict = while_all_run(&guest, &runners, || {
        (0..count).try_for_each(|turn| flip(turn).case(format_args!("flip {turn}")))
    });
    let exits: u64 = runners.iter().map(|runner| runner.exits.load(SeqCst)).sum();
    env.measure(name, (cpu::tsc() - start) / count.max(1), "ticks a flip");
    crate::println!("# {count} flips, {} vCPUs, {exits} exits", runners.len());
    verdict.and_then(|()| judge(&guest, &runners))
}

/// PROTECT without and with WRITE: no write after the first returns.
fn protect_flips(env: &mut Env<'_>) -> Verdict {
    let (guest, runners) = runners(env)?;
    let frame = ram::pages(1);
    ram::store(frame, GOOD);
    guest.map(&[lists::map(TEST.gpa, frame, 1)])?;
    let to = |access| args::vm(0).list(lists::of(&[lists::protect(TEST.gpa, 1, access)]));
    let (narrow, wide) = (to(Access::READ | Access::EXECUTE), to(lists::ALL));
    let flip = |turn: u64| -> Verdict {
        guest.l0.ok(Op::Protect, &narrow)?;
        stands_still(frame, turn)?;
        guest.l0.ok(Op::Protect, &wide)?;
        if turn.is_multiple_of(4) {
            await_writer(frame);
        }
        Ok(())
    };
    let verdict = while_all_run(&guest, &runners, || {
        let count = fewer(env.options.flips);
        (0..count).try_for_each(|turn| flip(turn).case(format_args!("flip {turn}")))
    });
    verdict.and_then(|()| judge(&guest, &runners))
}

/// L2 changes its own tables and sees the change after its own flush; L1 does nothing.
fn own_tables(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let frames = ram::pages_at(1024, 0x20_0000);
    let (first, second) = (TEST.gpa, TEST.gpa + 0x20_0000);
    ram::store(frames, 111);
    ram::store(frames + 0x20_0000, 222);
    guest.map(&[lists::map(first, frames, 512), lists::map(second, frames + 0x20_0000, 512)])?;
    // The directory entry of the first 2 MiB of TEST, in the second GiB's directory.
    let entry = 0x4000;
    let old = ram::load(guest.at(entry));
    same!(old & !0xfff, first, "the table that this check changes");
    let set = [(gpr::RDI, entry), (gpr::RAX, second | old & 0xfff)];
    same!(guest.reads(first)?, 111, "before");
    guest.does(code::store(), &set)?;
    // Starting a program loads CR3.
    same!(guest.reads(first)?, 222, "after L2 changed its table and loaded CR3");
    Ok(())
}

/// RESET while vCPUs run: they stop with KICKED and use nothing afterwards.
fn reset_of_a_running_vm(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = Guest::new(env)?;
    let frame = ram::pages(1);
    guest.map(&[lists::map(TEST.gpa, frame, 1)])?;
    let set = [
        (gpr::RDI, TEST.gpa),
        (gpr::RBX, POISON),
        (gpr::RSI, counts(0)),
        (15, clock::after(3_000_000)),
    ];
    guest.start(0, code::flips(), &set)?;
    let seen = AtomicU64::new(0);
    let runner = || {
        let (status, raw) = second.l0.run(0, 0, &control());
        seen.store(u64::from(status.raw()) << 32 | u64::from(raw.reason), SeqCst);
    };
    let verdict = smp::beside(second.cpu, &runner, || {
        let patience = clock::after(2_000_000);
        while ram::load(frame + 8) == 0 && cpu::tsc() < patience {
            clock::nap(200);
        }
        env.l0.ok(Op::Reset, &args::none())?;
        stands_still(frame, 1)?;
        ram::store(frame, POISON);
        ram::store(guest.at(counts(0)), 0);
        clock::nap(3000);
        stands_still(frame, 1)?;
        same!(ram::load(guest.at(counts(0))), 0, "reads through the old mapping");
        Ok::<(), Wrong>(())
    });
    verdict?;
    let kicked = pv_abi::l0::ExitReason::Kicked.raw();
    same!(seen.load(SeqCst), kicked.into(), "status << 32 | reason of the RUN in progress");
    env.l0.ok(Op::Query, &args::none())?;
    Ok(())
}
