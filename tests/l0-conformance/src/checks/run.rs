//! RUN and KICK: how it starts, what ends it (spec sections 6.1, 6.2).

use super::{Group, check};
use crate::{
    env::Env,
    holds,
    l0::{
        args::{self, With},
        lists,
    },
    l2::{
        code::{self, TIME_UP},
        guest::{Guest, control, said_through},
        layout::{self, HOLE},
        registers,
    },
    runtime::{apic, clock, cpu, idt::TIMER_COUNT, ram, smp},
    same, skip,
    tap::{Case, Verdict, Wrong},
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use pv_abi::l0::{
    Exit, ExitReason, Features, Op, Status,
    page::offset,
    regs::{Gprs, Groups, gpr},
    run::{NO_DEADLINE, RunControl, RunExit, RunFlags},
};

pub const GROUP: Group = Group {
    name: "run",
    checks: &[
        check("past_deadline", "L0-RUN-1 L0-RUN-2 L0-RUN-3", past_deadline),
        check("deadline", "L0-RUN-3", deadline),
        check("no_deadline", "L0-RUN-3", no_deadline),
        check("goes_on_after_a_deadline", "L0-RUN-3 L0-RUN-6", goes_on_after_a_deadline),
        check("kick_before", "L0-KICK-1 L0-RUN-2", kick_before),
        check("kick_and_deadline", "L0-RUN-2", kick_and_deadline),
        check("kick_during", "L0-KICK-2 L0-KICK-3", kick_during),
        check("kick_storm", "L0-KICK-1 L0-KICK-2 L0-SEC-3", kick_storm),
        check("complete_only", "L0-RUN-9 L0-RUN-1 L0-KICK-1", complete_only),
        check("bad_control", "L0-RUN-1 L0-RUN-6", bad_control),
        check("bad_groups", "L0-RUN-1 L0-RUN-6 L0-REGS-2", bad_groups),
        check(
            "groups_while_a_reply_is_awaited",
            "L0-RUN-1 L0-REGS-4",
            groups_while_a_reply_is_awaited,
        ),
        check("groups", "L0-RUN-6 L0-REGS-7", groups),
        check("busy", "L0-RUN-1 L0-RUN-7 L0-REGS-1 L0-REGS-6 L0-MSR-5 L0-VM-3", busy),
        check("others_go_on", "L0-OP-3 L0-RUN-7", others_go_on),
        check("any_cpu", "L0-RUN-7", any_cpu),
        check("in_parallel", "L0-RUN-7", in_parallel),
        check("down", "L0-RUN-1 L0-REGS-5", down),
        check("seals", "L0-RUN-8 L0-CPUID-1 L0-MSR-3", seals),
        check("interrupts_wait", "L0-RUN-4", interrupts_wait),
        check("pending", "L0-RUN-5 L0-RUN-2", pending),
        check("only_inside_run", "L0-GEN-1", only_inside_run),
    ],
};

/// A VM whose vCPU 0 spins; it is done after `PATIENCE` at the latest.
fn spinner(env: &Env<'_>) -> Verdict<Guest> {
    let guest = Guest::new(env)?;
    guest.start(0, code::spins(), &[(15, clock::after(crate::l2::guest::PATIENCE / 2))])?;
    Ok(guest)
}

/// Microseconds in which anything happens that will happen at all.
const LONG: u64 = 200_000;

fn turns(guest: &Guest) -> Verdict<u64> {
    Ok(guest.gprs()?.gpr[gpr::RBX])
}

/// A deadline that has passed: no instruction of L2 is executed.
fn past_deadline(env: &mut Env<'_>) -> Verdict {
    let guest = spinner(env)?;
    for deadline in [0, 1, cpu::tsc() - 1] {
        let (exit, _) = guest.exit(&RunControl { deadline, ..control() })?;
        same!(exit, Exit::Deadline, "the exit");
        same!(turns(&guest)?, 0, "turns of the program");
        same!(guest.gprs()?.rip, layout::code(0), "RIP");
    }
    Ok(())
}

/// 50 deadlines of 50 to 2500 microseconds: never early. How late they are is measured.
fn deadline(env: &mut Env<'_>) -> Verdict {
    let guest = spinner(env)?;
    let (mut worst, mut sum) = (0, 0);
    for round in 1..=50 {
        let deadline = clock::after(50 * round);
        let (exit, _) = guest.exit(&RunControl { deadline, ..control() })?;
        let now = cpu::tsc();
        same!(exit, Exit::Deadline, "the exit of round {round}");
        holds!(now >= deadline, "round {round}: {} ticks early", deadline - now);
        worst = worst.max(now - deadline);
        sum += now - deadline;
        if round % 10 == 0 {
            // Before its time is up.
            guest.start(0, code::spins(), &[(15, clock::after(crate::l2::guest::PATIENCE / 2))])?;
        }
    }
    env.measure("deadline_late_worst", clock::to_microseconds(worst), "microseconds");
    env.measure("deadline_late_mean", clock::to_microseconds(sum / 50), "microseconds");
    Ok(())
}

/// Without a deadline, an exit of L2 ends RUN all the same.
fn no_deadline(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, code::spins(), &[(15, clock::after(20_000))])?;
    let (exit, _) = guest.exit(&RunControl { deadline: NO_DEADLINE, ..control() })?;
    same!(guest.said(exit)?, TIME_UP, "EAX");
    Ok(())
}

/// The program goes on where the deadline found it.
fn goes_on_after_a_deadline(env: &mut Env<'_>) -> Verdict {
    let guest = spinner(env)?;
    let mut before = 0;
    for round in 0..10 {
        let (exit, raw) = guest.exit(&RunControl { deadline: clock::after(3000), ..control() })?;
        same!(exit, Exit::Deadline, "the exit of round {round}");
        same!(raw.state & 4, 0, "AWAITS_REPLY");
        let now = turns(&guest)?;
        holds!(now >= before, "turns went from {before} to {now}");
        before = now;
    }
    holds!(before > 0, "no turn in 30 ms");
    Ok(())
}

fn kick(env: &Env<'_>, vcpu: u32) -> Verdict {
    env.l0.refuses(Status::Ok, Op::Kick, &args::vcpu(0, vcpu))
}

/// Runs once, spurious kicks included.
fn run_once(guest: &Guest, control: &RunControl) -> Verdict<(Exit, RunExit)> {
    guest.l0.run_ok(guest.vm, 0, control)
}

/// A kick before RUN is not lost; two are one; nothing of L2 is executed.
fn kick_before(env: &mut Env<'_>) -> Verdict {
    let guest = spinner(env)?;
    for kicks in [1, 2, 5] {
        let before = turns(&guest)?;
        (0..kicks).try_for_each(|_| kick(env, 0))?;
        let (exit, _) = run_once(&guest, &control())?;
        same!(exit, Exit::Kicked, "the exit after {kicks} kicks");
        same!(turns(&guest)?, before, "turns of the program");
        let (exit, _) = guest.exit(&RunControl { deadline: clock::after(2000), ..control() })?;
        same!(exit, Exit::Deadline, "the next exit");
    }
    Ok(())
}

/// Of a kick and a passed deadline, the kick comes first, then the deadline.
fn kick_and_deadline(env: &mut Env<'_>) -> Verdict {
    let guest = spinner(env)?;
    kick(env, 0)?;
    let past = RunControl { deadline: 1, ..control() };
    same!(run_once(&guest, &past)?.0, Exit::Kicked, "the first exit");
    same!(guest.exit(&past)?.0, Exit::Deadline, "the second exit");
    Ok(())
}

/// Runs vCPU 0 on another CPU while `here` runs; the exit that ended it, and whether a program was
/// done.
fn run_there<R>(guest: &Guest, second: &crate::env::Second, here: impl FnOnce() -> R) -> (R, Exit) {
    let done = AtomicBool::new(false);
    let runner = || {
        let (status, _) = second.l0.run(guest.vm, 0, &control());
        done.store(status == Status::Ok, SeqCst);
    };
    ram::store(guest.base, 0);
    let result = smp::beside(second.cpu, &runner, || {
        wait_for_turns(guest);
        here()
    });
    let raw = second.l0.get(offset::EXIT);
    (result, if done.load(SeqCst) { Exit::decode(&raw) } else { Exit::Unknown(0) })
}

/// Waits until a spinner has run, but not for ever.
fn wait_for_turns(guest: &Guest) {
    let patience = clock::after(1_000_000);
    while ram::load(guest.base) == 0 && cpu::tsc() < patience {
        clock::nap(200);
    }
}

/// KICK of a vCPU in RUN ends that RUN.
fn kick_during(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = spinner(env)?;
    let mut worst = 0;
    for round in 0..20 {
        let ended = AtomicU64::new(0);
        let runner = || {
            second.l0.run(0, 0, &control());
            ended.store(cpu::tsc(), SeqCst);
        };
        ram::store(guest.base, 0);
        let verdict = smp::beside(second.cpu, &runner, || {
            wait_for_turns(&guest);
            let start = cpu::tsc();
            kick(env, 0)?;
            Ok::<u64, Wrong>(start)
        });
        let start = verdict?;
        let raw: RunExit = second.l0.get(offset::EXIT);
        same!(second.l0.answer().status, Status::Ok, "RUN of round {round}");
        same!(Exit::decode(&raw), Exit::Kicked, "the exit of round {round}");
        worst = worst.max(ended.load(SeqCst).saturating_sub(start));
        guest.start(0, code::spins(), &[(15, clock::after(crate::l2::guest::PATIENCE / 2))])?;
    }
    env.measure("kick_to_return_worst", clock::to_microseconds(worst), "microseconds");
    Ok(())
}

/// Kicks without end and RUNs without end: each RUN returns, and none is missed in the end.
fn kick_storm(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = spinner(env)?;
    let kicked = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let runner = || {
        while !stop.load(SeqCst) {
            let (status, raw) =
                second.l0.run(0, 0, &RunControl { deadline: clock::after(1_000_000), ..control() });
            if status != Status::Ok || raw.reason != ExitReason::Kicked.raw() {
                return;
            }
            kicked.fetch_add(1, SeqCst);
        }
    };
    let verdict = smp::beside(second.cpu, &runner, || {
        let verdict = (0..300).try_for_each(|round| {
            if round % 8 == 0 {
                clock::nap(100);
            }
            kick(env, 0)
        });
        stop.store(true, SeqCst);
        // The last RUN, if any is in progress.
        verdict.and_then(|()| kick(env, 0))
    });
    verdict?;
    holds!(kicked.load(SeqCst) > 0, "no RUN returned KICKED in a storm of kicks");
    let (exit, _) = guest.exit(&RunControl { deadline: 1, ..control() })?;
    same!(exit, Exit::Deadline, "the VM afterwards");
    Ok(())
}

/// COMPLETE_ONLY finishes the instruction that awaits a reply, executes nothing more, and neither
/// takes a kick nor minds a deadline.
fn complete_only(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let set = [(gpr::RDX, 0x70), (gpr::RAX, 0)];
    guest.start(0, &code::ports()[4..], &set)?;
    let exit = guest.run()?;
    holds!(matches!(exit, Exit::Io { port: 0x70, size: 4, .. }), "IN gave {exit:x?}");
    kick(env, 0)?;
    env.l0.put(offset::IO, &0x8765_4321_u32);
    let only = RunControl { flags: RunFlags::COMPLETE_ONLY.bits(), deadline: 1, ..control() };
    same!(run_once(&guest, &only)?.0, Exit::Completed, "the exit");
    same!(guest.gprs()?.gpr[gpr::RAX], 0x8765_4321, "RAX, completed");
    same!(run_once(&guest, &only)?.0, Exit::Completed, "the exit, again");
    same!(run_once(&guest, &control())?.0, Exit::Kicked, "the next exit: the kick");
    same!(guest.done()?, 0x8765_4321, "EAX of the program");
    Ok(())
}

/// Malformed control words are refused before anything happens; the exit area stays.
fn bad_control(env: &mut Env<'_>) -> Verdict {
    let guest = spinner(env)?;
    guest.exit(&RunControl { deadline: 1, ..control() })?;
    let mark = [0x5a_u8; 128];
    let good = control();
    let word = |kind: u32, vector: u32| 1 << 31 | kind << 8 | vector;
    let bad = [
        ("flag 2", RunControl { flags: 4, ..good }),
        ("flag 31", RunControl { flags: 1 << 31, ..good }),
        ("write group 4", RunControl { write: 16, ..good }),
        ("write group 31", RunControl { write: 1 << 31, ..good }),
        ("read group 4", RunControl { read: 16, ..good }),
        ("event without its valid bit", RunControl { event: 0x30, ..good }),
        ("interrupt 15", RunControl { event: word(0, 15), ..good }),
        ("kind 1", RunControl { event: word(1, 32), ..good }),
        ("kind 7", RunControl { event: word(7, 32), ..good }),
        ("NMI with vector 3", RunControl { event: word(2, 3), ..good }),
        ("exception 2", RunControl { event: word(3, 2), ..good }),
        ("exception 32", RunControl { event: word(3, 32), ..good }),
        ("#GP without error code", RunControl { event: word(3, 13), ..good }),
        ("#UD with error code", RunControl { event: word(3, 6) | 1 << 11, ..good }),
        ("an undefined bit", RunControl { event: word(0, 32) | 1 << 20, ..good }),
    ];
    for (name, control) in bad {
        env.l0.put(offset::EXIT, &mark);
        guest.refuses_run(Status::BadArg, &control).case(format_args!("{name}"))?;
        same!(env.l0.get::<[u8; 128]>(offset::EXIT), mark, "the exit area, {name}");
        same!(turns(&guest)?, 0, "turns, {name}");
    }
    Ok(())
}

/// A group that the CPU would refuse: index is its bit, and L2 does not run.
fn bad_groups(env: &mut Env<'_>) -> Verdict {
    let guest = spinner(env)?;
    let good = guest.gprs()?;
    env.l0.put(offset::GPRS, &Gprs { rip: 1 << 63, ..good });
    let control = RunControl { write: Groups::GPRS.bits(), ..control() };
    let mark = [0x5a_u8; 128];
    env.l0.put(offset::EXIT, &mark);
    guest.refuses_run(Status::BadArg, &control)?;
    same!(env.l0.answer().index, 0, "index: the group's bit");
    same!(env.l0.get::<[u8; 128]>(offset::EXIT), mark, "the exit area");
    same!(guest.gprs()?, good, "the registers");
    // Groups before a bad one are loaded.
    let mut special = registers::long();
    special.cr0 |= 1 << 40;
    env.l0.put(offset::GPRS, &Gprs { rflags: registers::FLAGS | 1, ..good });
    env.l0.put(offset::SPECIAL, &special);
    let write = (Groups::GPRS | Groups::SPECIAL).bits();
    guest.refuses_run(Status::BadArg, &RunControl { write, ..control })?;
    same!(env.l0.answer().index, 1, "index: the group's bit");
    same!(guest.gprs()?.rflags, registers::FLAGS | 1, "RFLAGS, which were loaded");
    Ok(())
}

fn groups_while_a_reply_is_awaited(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, &code::ports()[4..], &[(gpr::RDX, 0x70)])?;
    let (_, raw) = guest.exit(&control())?;
    same!(raw.state & 4, 4, "AWAITS_REPLY of an IN");
    for group in [Groups::GPRS, Groups::SPECIAL] {
        env.l0.put(offset::GPRS, &registers::general(0, &[]));
        env.l0.put(offset::SPECIAL, &registers::long());
        let bits = group.bits();
        env.l0.refuses(Status::BadState, Op::SetRegs, &args::vcpu(0, 0).flags(bits))?;
        guest.refuses_run(Status::BadState, &RunControl { write: bits, ..control() })?;
    }
    env.l0.put(offset::IO, &7_u32);
    same!(guest.done()?, 7, "EAX: the reply still works");
    Ok(())
}

/// What `read` asks for is there; what `valid` does not name is untouched; a group that `write`
/// does not name is not taken.
fn groups(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, code::counts(), &[(gpr::RAX, 3), (gpr::RBX, 0x77)])?;
    let garbage = [0xee_u8; 144];
    for read in 0..16 {
        env.l0.put(offset::GPRS, &garbage);
        env.l0.put(offset::SPECIAL, &garbage);
        env.l0.put(offset::DEBUG, &[0xee_u8; 48]);
        env.l0.put(offset::EVENTS, &[0xee_u8; 64]);
        let (_, raw) = guest.exit(&RunControl { read, ..control() })?;
        same!(raw.valid & read, read, "valid, of read");
        same!(raw.valid & !15, 0, "undefined bits of valid");
        for (bit, at) in
            [offset::GPRS, offset::SPECIAL, offset::DEBUG, offset::EVENTS].into_iter().enumerate()
        {
            let written = env.l0.get::<[u8; 48]>(at) != [0xee; 48];
            same!(
                written,
                raw.valid >> bit & 1 == 1,
                "group {bit} written, valid being {:#x}",
                raw.valid
            );
        }
        if read & 1 != 0 {
            same!(env.l0.get::<Gprs>(offset::GPRS).gpr[gpr::RBX], 0x77, "RBX");
        }
    }
    same!(guest.gprs()?.gpr[gpr::RBX], 0x77, "RBX after all");
    let mut gprs = guest.gprs()?;
    guest.settle()?;
    gprs.gpr[gpr::RAX] = 500;
    gprs.rip = layout::code(0);
    env.l0.put(offset::GPRS, &gprs);
    let (exit, _) = guest.exit(&RunControl { write: Groups::GPRS.bits(), ..control() })?;
    same!(guest.said(exit)?, 500, "EAX that RUN loaded");
    Ok(())
}

/// While a vCPU is in RUN, what must not happen beside it is BUSY.
fn busy(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = spinner(env)?;
    let xsave = args::List { address: ram::pages(4), count: env.info.limits.xsave_bytes };
    let msrs = args::List { address: ram::pages(1), count: 1 };
    ram::store(msrs.address, 0x10);
    let (verdict, exit) = run_there(&guest, &second, || {
        let vcpu = || args::vcpu(0, 0);
        let refused = [
            (Op::Run, vcpu()),
            (Op::GetRegs, vcpu().flags(1)),
            (Op::SetRegs, vcpu().flags(1)),
            (Op::GetXsave, vcpu().list(xsave)),
            (Op::SetXsave, vcpu().list(xsave).arg(0, 3)),
            (Op::GetMsrs, vcpu().list(msrs)),
            (Op::SetMsrs, vcpu().list(msrs)),
            (Op::DestroyVm, args::vm(0)),
        ];
        env.l0.put(offset::CONTROL, &control());
        let verdict =
            refused.iter().try_for_each(|(op, with)| env.l0.refuses(Status::Busy, *op, with));
        verdict.and(kick(env, 0))
    });
    verdict?;
    same!(exit, Exit::Kicked, "the exit of the RUN in progress");
    guest.gprs()?;
    guest.destroy()
}

/// RUN holds up no other call: lists, other vCPUs, other VMs, QUERY.
fn others_go_on(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = spinner(env)?;
    let frame = ram::pages(1);
    let slowest = AtomicU64::new(0);
    let map = args::vm(0).list(lists::of(&[lists::map(HOLE, frame, 1)]));
    let unmap = args::vm(0).list(lists::of(&[lists::unmap(HOLE, 1)]));
    let (verdict, exit) = run_there(&guest, &second, || {
        for (op, with) in [(Op::Map, map), (Op::Query, args::none()), (Op::Unmap, unmap)] {
            let start = cpu::tsc();
            env.l0.ok(op, &with)?;
            slowest.fetch_max(cpu::tsc() - start, SeqCst);
        }
        if env.info.limits.vcpus > 1 {
            guest.add_vcpu(env, 1)?;
        }
        kick(env, 0)
    });
    verdict?;
    same!(exit, Exit::Kicked, "the exit of the RUN in progress, which nothing else ended");
    let slowest = clock::to_microseconds(slowest.load(SeqCst));
    holds!(slowest < 1_000_000, "a call took {slowest} microseconds beside a RUN");
    Ok(())
}

/// A vCPU is run here, there, and here again.
fn any_cpu(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = Guest::new(env)?;
    guest.start(0, code::counts(), &[(gpr::RAX, 1)])?;
    for round in 0..10 {
        same!(guest.done()?, 2 * round + 1, "EAX here");
        smp::beside(
            second.cpu,
            &|| {
                second.l0.run(0, 0, &control());
            },
            || (),
        );
        let raw = second.l0.get(offset::EXIT);
        same!(said_through(&second.l0, Exit::decode(&raw))?, 2 * round + 2, "EAX there");
    }
    Ok(())
}

/// Two vCPUs of a VM wait for each other: they must run at the same time.
fn in_parallel(env: &mut Env<'_>) -> Verdict {
    if env.info.limits.vcpus < 2 {
        return skip!("one vCPU at most");
    }
    let second = env.second()?;
    let guest = Guest::new(env)?;
    guest.add_vcpu(env, 1)?;
    let until = clock::after(crate::l2::guest::PATIENCE / 2);
    let (here, there) = (layout::DATA, layout::DATA + 64);
    // Each writes its word and waits for the other's.
    let set = |own, other| [(gpr::RSI, own), (gpr::RDI, other), (gpr::RBX, 1), (15, until)];
    guest.start(0, code::meets(), &set(here, there))?;
    guest.start(1, code::meets(), &set(there, here))?;
    let runner = || {
        second.l0.run(0, 1, &control());
    };
    let said = smp::beside(second.cpu, &runner, || guest.done());
    same!(said?, 1, "EAX of vCPU 0");
    let raw = second.l0.get(offset::EXIT);
    same!(said_through(&second.l0, Exit::decode(&raw))?, 1, "EAX of vCPU 1");
    Ok(())
}

/// After a triple fault only both groups together bring the vCPU back.
fn down(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    // DATA holds zeros: an IDT without entries.
    let exit = guest.exits(code::faults_thrice(), &[(gpr::RDI, layout::DATA)])?;
    same!(exit, Exit::Shutdown, "the exit of a triple fault");
    guest.refuses_run(Status::BadState, &control())?;
    let general = registers::general(0, &[(gpr::RAX, 9)]);
    ram::write_bytes(guest.at(layout::code(0)), code::counts());
    for write in [Groups::GPRS, Groups::SPECIAL, Groups::GPRS | Groups::DEBUG] {
        env.l0.put(offset::GPRS, &general);
        env.l0.put(offset::SPECIAL, &registers::long());
        guest.refuses_run(Status::BadState, &RunControl { write: write.bits(), ..control() })?;
    }
    env.l0.put(offset::GPRS, &general);
    env.l0.put(offset::SPECIAL, &registers::long());
    let write = (Groups::GPRS | Groups::SPECIAL).bits();
    let (exit, _) = guest.exit(&RunControl { write, ..control() })?;
    same!(guest.said(exit)?, 9, "EAX of the vCPU that is back");
    let exit = guest.exits(code::faults_thrice(), &[(gpr::RDI, layout::DATA)])?;
    same!(exit, Exit::Shutdown, "the exit of another triple fault");
    same!(guest.does(code::counts(), &[(gpr::RAX, 4)])?, 4, "EAX, back by SET_REGS");
    Ok(())
}

/// The first RUN that answers OK seals; one that is refused does not.
fn seals(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let table = args::vcpu(0, 0).list(lists::of(&env.cpuid_table(0)));
    let policy = args::vm(0).list(args::List { address: ram::pages(1), count: 0 });
    guest.start(0, code::counts(), &[])?;
    guest.refuses_run(Status::BadArg, &RunControl { flags: 1 << 9, ..control() })?;
    env.l0.ok(Op::SetCpuid, &table)?;
    env.l0.ok(Op::SetMsrPolicy, &policy)?;
    guest.done()?;
    env.l0.refuses(Status::Sealed, Op::SetCpuid, &table)?;
    env.l0.refuses(Status::Sealed, Op::SetMsrPolicy, &policy)?;
    if env.info.limits.vcpus > 1 {
        // Another vCPU's table is still open, the VM's policy is not.
        guest.add_vcpu(env, 1)?;
        env.l0.refuses(Status::Sealed, Op::SetMsrPolicy, &policy)?;
    }
    Ok(())
}

/// L1's timer fires while L2 runs: RUN does not return for it (without PENDING_EXIT), and it is
/// taken as soon as RUN is over.
fn interrupts_wait(env: &mut Env<'_>) -> Verdict {
    env.enable(env.info.features.difference(Features::PENDING_EXIT))?;
    let guest = spinner(env)?;
    for round in 0..5 {
        let before = TIMER_COUNT.load(SeqCst);
        apic::fire_in(clock::microseconds(500));
        let deadline = clock::after(4000);
        let control = RunControl { deadline, ..control() };
        x86_64::instructions::interrupts::enable();
        let exit = guest.exit(&control);
        x86_64::instructions::nop();
        let late = cpu::tsc().saturating_sub(deadline);
        // It is there already, but a busy machine may be slow to say so.
        let patience = clock::after(LONG);
        while TIMER_COUNT.load(SeqCst) == before && cpu::tsc() < patience {
            core::hint::spin_loop();
        }
        let taken = TIMER_COUNT.load(SeqCst) > before;
        x86_64::instructions::interrupts::disable();
        apic::stop_timer();
        same!(exit?.0, Exit::Deadline, "the exit of round {round}");
        holds!(
            taken,
            "round {round}: the timer's interrupt was lost ({late} ticks after the deadline)"
        );
    }
    Ok(())
}

fn pending(env: &mut Env<'_>) -> Verdict {
    env.needs(Features::PENDING_EXIT, "PENDING_EXIT")?;
    let guest = spinner(env)?;
    for enabled in [true, false] {
        apic::fire_in(clock::microseconds(500));
        if enabled {
            x86_64::instructions::interrupts::enable();
        }
        let exit = guest.exit(&control());
        x86_64::instructions::interrupts::disable();
        same!(exit?.0, Exit::Pending, "the exit, IF {enabled}");
        if !enabled {
            // Not taken yet, so still pending.
            same!(guest.run()?, Exit::Pending, "the exit, again");
            x86_64::instructions::interrupts::enable();
            x86_64::instructions::nop();
            x86_64::instructions::interrupts::disable();
        }
    }
    Ok(())
}

/// Between calls L2 does not execute.
fn only_inside_run(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let set = [
        (gpr::RDI, layout::DATA),
        (gpr::RSI, layout::DATA + 4096),
        (15, clock::after(crate::l2::guest::PATIENCE / 2)),
    ];
    guest.start(0, code::dirties(), &set)?;
    let mut before = 0;
    // On a machine that is busy with others, the first of them may pass without an instruction.
    for _ in 0..50 {
        let (exit, _) = guest.exit(&RunControl { deadline: clock::after(3000), ..control() })?;
        same!(exit, Exit::Deadline, "the exit");
        before = ram::load(guest.at(layout::DATA));
        if before > 0 {
            break;
        }
    }
    holds!(before > 0, "the program wrote nothing in 150 ms");
    clock::nap(10_000);
    same!(ram::load(guest.at(layout::DATA)), before, "what L2 writes, 10 ms later");
    Ok(())
}
