//! VMs whose interrupt controllers are L0's (spec section 6.6).

use super::{Group, check};
use crate::{
    env::Env,
    holds,
    l0::args::{self, List, With},
    l2::{
        code,
        guest::{Guest, control},
        layout, registers,
    },
    runtime::{clock, cpu, ram, smp},
    same, skip,
    tap::{Case, Verdict},
};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use pv_abi::l0::{
    Exit, Features, Op, Status,
    op::flags::CreateVm,
    regs::{Gprs, gpr},
    run::{Event, RunControl, RunFlags},
};

pub const GROUP: Group = Group {
    name: "apic",
    checks: &[
        check("only_with_the_flag", "L0-APIC-4", only_with_the_flag),
        check("hlt_stays_in_l0", "L0-APIC-2 L0-EXIT-4", hlt_stays_in_l0),
        check("timer", "L0-APIC-1 L0-APIC-2", timer),
        check("msi", "L0-APIC-3", msi),
        check("msi_wakes", "L0-APIC-3 L0-APIC-2", msi_wakes),
        check("kick_wakes", "L0-APIC-2 L0-KICK-2", kick_wakes),
        check("gsi", "L0-APIC-3 L0-APIC-1", gsi),
        check("bad_arguments", "L0-APIC-3 L0-APIC-4", bad_arguments),
        check("state", "L0-APIC-4", state),
        check("no_events", "L0-EVT-2", no_events),
        check("start_of_another", "L0-APIC-1 L0-APIC-2", start_of_another),
    ],
};

fn with_apic(env: &Env<'_>) -> Verdict<Guest> {
    env.needs(Features::IN_L0_APIC, "IN_L0_APIC")?;
    Guest::with(env, 0, CreateVm::APIC)
}

fn only_with_the_flag(env: &mut Env<'_>) -> Verdict {
    env.needs(Features::IN_L0_APIC, "IN_L0_APIC")?;
    Guest::new(env)?;
    let list = List { address: ram::pages(1), count: 1024 };
    for op in [Op::GetLapic, Op::SetLapic] {
        env.l0.refuses(Status::BadState, op, &args::vcpu(0, 0).list(list))?;
    }
    env.l0.refuses(Status::BadState, Op::SetGsi, &args::vm(0).arg(0, 5).arg(1, 1))?;
    env.l0.refuses(Status::BadState, Op::SendMsi, &args::vm(0).arg(0, 0xfee0_0000).arg(1, 0x50))
}

/// Ticks of L2's timer, seconds on the machines there are: what ends a HLT that L0 forgot.
const TIMER: u64 = 4_000_000_000;

/// Starts a program that has its APIC on, IF set, and waits in HLT after its first done.
fn waiting(guest: &Guest) -> Verdict {
    guest.start(0, code::apic_waits(), &[(gpr::RBX, TIMER)])?;
    guest.done()?;
    Ok(())
}

fn hlt_stays_in_l0(env: &mut Env<'_>) -> Verdict {
    let guest = with_apic(env)?;
    waiting(&guest)?;
    for round in 0..3 {
        let deadline = clock::after(2000);
        let (exit, _) = guest.exit(&RunControl { deadline, ..control() })?;
        same!(exit, Exit::Deadline, "the exit of round {round}");
        holds!(cpu::tsc() >= deadline, "before the deadline");
    }
    Ok(())
}

/// L2's own timer wakes it from HLT; nothing of that reaches L1.
fn timer(env: &mut Env<'_>) -> Verdict {
    let guest = with_apic(env)?;
    guest.start(0, code::apic_timer(), &[(gpr::RBX, 500_000), (gpr::RAX, 6)])?;
    let exit = guest.run()?;
    guest.took(exit, 0x50)?;
    same!(guest.done()?, 6, "EAX");
    Ok(())
}

fn send(env: &Env<'_>, vector: u64) -> Verdict<u64> {
    let with = args::vm(0).arg(0, 0xfee0_0000).arg(1, vector);
    Ok(env.l0.ok(Op::SendMsi, &with)?.value)
}

fn msi(env: &mut Env<'_>) -> Verdict {
    let guest = with_apic(env)?;
    waiting(&guest)?;
    for vector in [0x40_u8, 0x99, 0xfe] {
        same!(send(env, vector.into())?, 1, "value of SEND_MSI");
        let exit = guest.run()?;
        guest.took(exit, vector).case(format_args!("MSI {vector:#x}"))?;
        // End of interrupt, by hand: the handlers have none.
        restart(&guest)?;
    }
    // No such CPU.
    let nobody = args::vm(0).arg(0, 0xfee0_0000 | 0x77 << 12).arg(1, 0x40);
    same!(env.l0.ok(Op::SendMsi, &nobody)?.value, 0, "value of SEND_MSI to nobody");
    Ok(())
}

/// Clears what is in service: the program writes EOI, then goes on waiting.
fn restart(guest: &Guest) -> Verdict {
    guest.settle()?;
    let set = [(gpr::RDI, 0xfee0_00b0), (gpr::RAX, 0)];
    guest.does(&code::stores()[5..], &set)?;
    guest.settle()?;
    waiting(guest)
}

/// RUN on another CPU waits in HLT until an MSI from this one.
fn msi_wakes(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = with_apic(env)?;
    waiting(&guest)?;
    let ended = AtomicU64::new(0);
    let runner = || {
        second.l0.run(0, 0, &control());
        ended.store(cpu::tsc(), SeqCst);
    };
    let sent = smp::beside(second.cpu, &runner, || {
        clock::nap(5000);
        let now = cpu::tsc();
        send(env, 0x61).map(|_| now)
    });
    let sent = sent?;
    same!(second.l0.answer().status, Status::Ok, "RUN");
    let exit = Exit::decode(&second.l0.get(pv_abi::l0::page::offset::EXIT));
    holds!(matches!(exit, Exit::Io { port: layout::VECTOR_PORT, .. }), "RUN returned {exit:x?}");
    same!(second.l0.get::<u8>(pv_abi::l0::page::offset::IO), 0x61, "the vector");
    let late = clock::to_microseconds(ended.load(SeqCst).saturating_sub(sent));
    env.measure("msi_to_exit", late, "microseconds");
    Ok(())
}

fn kick_wakes(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let guest = with_apic(env)?;
    waiting(&guest)?;
    let runner = || {
        second.l0.run(0, 0, &control());
    };
    smp::beside(second.cpu, &runner, || {
        clock::nap(5000);
        env.l0.ok(Op::Kick, &args::vcpu(0, 0))
    })?;
    let exit = Exit::decode(&second.l0.get(pv_abi::l0::page::offset::EXIT));
    same!(exit, Exit::Kicked, "the exit of a RUN that waited in HLT");
    Ok(())
}

/// A line of the I/O APIC, edge: 1, then 0.
fn gsi(env: &mut Env<'_>) -> Verdict {
    let guest = with_apic(env)?;
    for line in [5, 10, 23_u64] {
        let set = [(gpr::RBX, line), (gpr::RAX, 0)];
        guest.start(0, code::io_apic_waits(), &set)?;
        guest.done()?;
        let with = |level: u64| args::vm(0).arg(0, line).arg(1, level);
        env.l0.ok(Op::SetGsi, &with(1))?;
        env.l0.ok(Op::SetGsi, &with(0))?;
        let exit = guest.run()?;
        guest.took(exit, 0x51).case(format_args!("line {line}"))?;
        restart(&guest)?;
    }
    Ok(())
}

fn bad_arguments(env: &mut Env<'_>) -> Verdict {
    with_apic(env)?;
    let gsi = |line: u64, level: u64| args::vm(0).arg(0, line).arg(1, level);
    for (line, level) in [(24, 0), (24, 1), (u64::MAX, 1), (1 << 32, 0), (5, 2), (5, u64::MAX)] {
        env.l0.refuses(Status::BadArg, Op::SetGsi, &gsi(line, level))?;
    }
    let msi = |address: u64, data: u64| args::vm(0).arg(0, address).arg(1, data);
    for (address, data) in [
        (0, 0x40),
        (0xfedf_ffff, 0x40),
        (0xfef0_0000, 0x40),
        (1 << 32 | 0xfee0_0000, 0x40),
        (0xfee0_0000, 1 << 32 | 0x40),
        (u64::MAX, 0),
    ] {
        env.l0
            .refuses(Status::BadArg, Op::SendMsi, &msi(address, data))
            .case(format_args!("{address:#x}, {data:#x}"))?;
    }
    let page = ram::pages(1);
    for op in [Op::GetLapic, Op::SetLapic] {
        for count in [0, 1023] {
            let list = List { address: page, count };
            env.l0.refuses(Status::BadArg, op, &args::vcpu(0, 0).list(list))?;
        }
        let list = List { address: env.no_ram(), count: 1024 };
        env.l0.refuses(Status::NotYours, op, &args::vcpu(0, 0).list(list))?;
    }
    Ok(())
}

fn state(env: &mut Env<'_>) -> Verdict {
    let guest = with_apic(env)?;
    let list = List { address: ram::pages(1), count: 1024 };
    ram::store(list.address + 1024, 0xeeee);
    env.l0.ok(Op::GetLapic, &args::vcpu(0, 0).list(list))?;
    same!(ram::load(list.address + 1024), 0xeeee, "behind the buffer");
    same!(ram::load32(list.address + 0x20) >> 24, 0, "APIC id");
    same!(
        ram::load32(list.address + 0xf0) & 0x1ff,
        0xff,
        "the spurious vector register after reset"
    );
    // Enabled, with a priority of its own.
    ram::store32(list.address + 0xf0, 0x1ff);
    ram::store32(list.address + 0x320, 0x1_0077);
    env.l0.ok(Op::SetLapic, &args::vcpu(0, 0).list(list))?;
    ram::fill(list.address, 1024, 0);
    env.l0.ok(Op::GetLapic, &args::vcpu(0, 0).list(list))?;
    same!(ram::load32(list.address + 0xf0) & 0x1ff, 0x1ff, "the spurious vector register");
    same!(ram::load32(list.address + 0x320), 0x1_0077, "the timer's entry");
    // L2 sees it.
    let said = guest.does(code::load_32(), &[(gpr::RDI, 0xfee0_0320)])?;
    same!(said, 0x1_0077, "the timer's entry in L2");
    if env.info.limits.vcpus > 1 {
        guest.add_vcpu(env, 1)?;
        env.l0.ok(Op::GetLapic, &args::vcpu(0, 1).list(list))?;
        same!(ram::load32(list.address + 0x20) >> 24, 1, "APIC id of vCPU 1");
    }
    Ok(())
}

/// Interrupts come from the APIC only; other events are as ever.
fn no_events(env: &mut Env<'_>) -> Verdict {
    let guest = with_apic(env)?;
    let general = registers::general(0, &[(gpr::RAX, 4)]);
    let general = Gprs { rflags: registers::FLAGS | registers::INTERRUPTS, ..general };
    guest.start_in(0, code::counts(), &general, &registers::long())?;
    let (event, _) = Event::Interrupt(0x30).encode();
    guest.refuses_run(Status::BadState, &RunControl { event, ..control() })?;
    guest.refuses_run(
        Status::BadState,
        &RunControl { flags: RunFlags::WINDOW.bits(), ..control() },
    )?;
    let (event, _) = Event::Exception { vector: 6, error: None }.encode();
    let (exit, _) = guest.exit(&RunControl { event, ..control() })?;
    guest.took(exit, 6)
}

/// vCPU 0 starts vCPU 1, which waits in L0 on another CPU, by INIT and SIPI.
fn start_of_another(env: &mut Env<'_>) -> Verdict {
    if env.info.limits.vcpus < 2 {
        return skip!("one vCPU at most");
    }
    let second = env.second()?;
    let guest = with_apic(env)?;
    guest.add_vcpu(env, 1)?;
    let page = layout::code(1);
    ram::write_bytes(guest.at(page), code::started());
    ram::store(guest.at(page) + 0xff0, 0);
    let time = clock::after(3_000_000);
    let set = [(gpr::RBX, 1), (gpr::RCX, page >> 12), (gpr::RSI, page + 0xff0), (15, time)];
    guest.start(0, code::apic_starts(), &set)?;
    let runner = || {
        // It halts in L0 once it is started; the kick brings it back.
        second.l0.run(0, 1, &control());
    };
    let said = smp::beside(second.cpu, &runner, || {
        clock::nap(2000);
        let said = guest.done();
        env.l0.ok(Op::Kick, &args::vcpu(0, 1)).and(said)
    });
    same!(said?, 0x77, "what vCPU 1 wrote after its start");
    let exit = Exit::decode(&second.l0.get(pv_abi::l0::page::offset::EXIT));
    same!(exit, Exit::Kicked, "the exit of vCPU 1");
    Ok(())
}
