//! Interrupts, NMIs and exceptions that L1 gives to L2 (spec section 6.5).

use super::{Group, check};
use crate::{
    env::Env,
    holds,
    l0::args::{self, With},
    l2::{
        code,
        guest::{Guest, control},
        layout::ERROR_PORT,
        registers::{self, FLAGS, INTERRUPTS},
    },
    same,
    tap::{Case, Verdict},
};
use pv_abi::l0::{
    Exit, Op, Status,
    exit::Direction,
    page::offset,
    regs::{EventFlags, Events, Gprs, Groups, gpr},
    run::{Event, RunControl, RunFlags, VcpuState},
};

pub const GROUP: Group = Group {
    name: "events",
    checks: &[
        check("interrupt", "L0-EVT-1 L0-EVT-2", interrupt),
        check("every_vector", "L0-EVT-1", every_vector),
        check("not_ready", "L0-EVT-2 L0-RUN-1", not_ready),
        check("window", "L0-RUN-1 L0-EVT-4 L0-EVT-2", window),
        check("window_already_open", "L0-RUN-2", window_already_open),
        check("shadow_of_sti", "L0-EVT-2", shadow_of_sti),
        check("exceptions", "L0-EVT-3 L0-EVT-1", exceptions),
        check("nmi", "L0-EVT-3 L0-EVT-1", nmi),
        check("nmi_masked", "L0-EVT-1", nmi_masked),
        check("survives_an_early_return", "L0-EVT-1", survives_an_early_return),
        check("wakes_from_hlt", "L0-EXIT-4 L0-EVT-1", wakes_from_hlt),
        check("with_a_reply", "L0-RUN-1", with_a_reply),
        check("one_at_a_time", "L0-EVT-2 L0-EVT-3", one_at_a_time),
    ],
};

/// RUN with this event.
fn with(event: Event) -> RunControl {
    let (event, event_error) = event.encode();
    RunControl { event, event_error, ..control() }
}

/// A VM whose program counts at the done port, with IF as `flags` says.
fn counting(env: &Env<'_>, flags: u64) -> Verdict<Guest> {
    let guest = Guest::new(env)?;
    restart(&guest, flags)?;
    Ok(guest)
}

fn restart(guest: &Guest, flags: u64) -> Verdict {
    let general = Gprs { rflags: FLAGS | flags, ..registers::general(0, &[(gpr::RAX, 1)]) };
    guest.start_in(0, code::counts(), &general, &registers::long())
}

/// The handler runs before the next instruction of the program, which then goes on.
fn interrupt(env: &mut Env<'_>) -> Verdict {
    let guest = counting(env, INTERRUPTS)?;
    for round in 1..6 {
        let (exit, raw) = guest.exit(&with(Event::Interrupt(0x30)))?;
        guest.took(exit, 0x30)?;
        same!(raw.state & 1, 0, "IF in the handler");
        let (exit, raw) = guest.exit(&control())?;
        same!(guest.said(exit)?, round, "EAX of the program");
        same!(raw.state & 1, 1, "IF in the program");
        guest.settle()?;
    }
    Ok(())
}

fn every_vector(env: &mut Env<'_>) -> Verdict {
    let guest = counting(env, INTERRUPTS)?;
    for vector in 16..=255 {
        let (exit, _) = guest.exit(&with(Event::Interrupt(vector)))?;
        guest.took(exit, vector).case(format_args!("vector {vector}"))?;
        if pv_abi::event::has_error_code(vector) || vector < 32 {
            // Handlers of exceptions may expect an error code: start anew.
            restart(&guest, INTERRUPTS)?;
            continue;
        }
        guest.done()?;
        guest.settle()?;
    }
    Ok(())
}

/// With IF = 0 an interrupt is BAD_STATE; the groups are loaded, nothing else is done.
fn not_ready(env: &mut Env<'_>) -> Verdict {
    let guest = counting(env, 0)?;
    let mark = [0x5a_u8; 128];
    env.l0.put(offset::EXIT, &mark);
    guest.refuses_run(Status::BadState, &with(Event::Interrupt(0x30)))?;
    same!(env.l0.get::<[u8; 128]>(offset::EXIT), mark, "the exit area");
    let general = Gprs { rflags: FLAGS, ..registers::general(0, &[(gpr::RAX, 77)]) };
    env.l0.put(offset::GPRS, &general);
    let write = Groups::GPRS.bits();
    guest.refuses_run(Status::BadState, &RunControl { write, ..with(Event::Interrupt(0x30)) })?;
    same!(guest.done()?, 77, "EAX: the groups were loaded, L2 had not run, no event came");
    Ok(())
}

/// INTERRUPT_WINDOW comes when L2 can take an interrupt, not before.
fn window(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, code::sti_between(), &[(gpr::RAX, 5)])?;
    let wanting = RunControl { flags: RunFlags::WINDOW.bits(), ..control() };
    let (exit, raw) = guest.exit(&wanting)?;
    same!(guest.said(exit)?, 5, "EAX before STI");
    same!(raw.state & 3, 0, "IF and READY before STI");
    let (exit, raw) = guest.exit(&wanting)?;
    same!(exit, Exit::InterruptWindow, "the exit");
    let state = VcpuState::from_bits_truncate(raw.state);
    holds!(state.contains(VcpuState::INTERRUPTS_ENABLED | VcpuState::INTERRUPT_READY), "{state:?}");
    let (exit, _) = guest.exit(&with(Event::Interrupt(0x44)))?;
    guest.took(exit, 0x44)?;
    same!(guest.done()?, 5, "EAX after the handler");
    Ok(())
}

fn window_already_open(env: &mut Env<'_>) -> Verdict {
    let guest = counting(env, INTERRUPTS)?;
    let wanting = RunControl { flags: RunFlags::WINDOW.bits(), ..control() };
    for _ in 0..3 {
        same!(guest.exit(&wanting)?.0, Exit::InterruptWindow, "the exit");
    }
    // A passed deadline comes before the window.
    let late = RunControl { deadline: 1, ..wanting };
    same!(guest.exit(&late)?.0, Exit::Deadline, "the exit with a passed deadline");
    same!(guest.done()?, 1, "EAX: nothing had been executed");
    Ok(())
}

/// In the shadow of STI no interrupt can be taken.
fn shadow_of_sti(env: &mut Env<'_>) -> Verdict {
    let guest = counting(env, INTERRUPTS)?;
    let shadow = Events { flags: EventFlags::STI_SHADOW.bits(), ..Events::default() };
    env.l0.put(offset::EVENTS, &shadow);
    env.l0.ok(Op::SetRegs, &args::vcpu(0, 0).flags(Groups::EVENTS.bits()))?;
    guest.refuses_run(Status::BadState, &with(Event::Interrupt(0x30)))?;
    same!(guest.done()?, 1, "EAX");
    Ok(())
}

/// Every exception without an error code, and some with one: delivered, whatever IF is.
fn exceptions(env: &mut Env<'_>) -> Verdict {
    let guest = counting(env, 0)?;
    for vector in [0, 1, 3, 4, 5, 6, 7, 16, 18, 19] {
        restart(&guest, 0)?;
        let (exit, _) = guest.exit(&with(Event::Exception { vector, error: None }))?;
        guest.took(exit, vector).case(format_args!("exception {vector}"))?;
    }
    for (vector, code) in [(10, 0x18), (11, 0x1234), (12, 0), (13, 0xfff8), (14, 6), (17, 0)] {
        restart(&guest, 0)?;
        let (exit, _) = guest.exit(&with(Event::Exception { vector, error: Some(code) }))?;
        guest.took(exit, vector).case(format_args!("exception {vector}"))?;
        let exit = guest.run()?;
        let report = Exit::Io { port: ERROR_PORT, size: 4, count: 1, direction: Direction::Write };
        same!(exit, report, "the exit of exception {vector}'s handler");
        same!(env.l0.get::<u32>(offset::IO), code, "the error code of exception {vector}");
    }
    Ok(())
}

/// An NMI is taken with IF = 0; a second one waits until the handler's IRET.
fn nmi(env: &mut Env<'_>) -> Verdict {
    let guest = counting(env, 0)?;
    let (exit, _) = guest.exit(&with(Event::Nmi))?;
    guest.took(exit, 2)?;
    // In the handler: this one waits.
    let (exit, _) = guest.exit(&with(Event::Nmi))?;
    guest.took(exit, 2).case(format_args!("the second NMI"))?;
    same!(guest.done()?, 1, "EAX of the program");
    Ok(())
}

/// Where NMIs are masked, one that is given waits, and EVENTS shows it.
fn nmi_masked(env: &mut Env<'_>) -> Verdict {
    let guest = counting(env, 0)?;
    let masked = Events { flags: EventFlags::NMI_MASKED.bits(), ..Events::default() };
    env.l0.put(offset::EVENTS, &masked);
    env.l0.ok(Op::SetRegs, &args::vcpu(0, 0).flags(Groups::EVENTS.bits()))?;
    let (exit, _) = guest.exit(&with(Event::Nmi))?;
    same!(guest.said(exit)?, 1, "EAX of the program, NMIs being masked");
    env.l0.ok(Op::GetRegs, &args::vcpu(0, 0).flags(Groups::EVENTS.bits()))?;
    let events: Events = env.l0.get(offset::EVENTS);
    let both = (EventFlags::NMI_PENDING | EventFlags::NMI_MASKED).bits();
    same!(events.flags & both, both, "flags of EVENTS");
    Ok(())
}

/// An event that was taken is delivered although RUN returned first, and EVENTS shows it.
fn survives_an_early_return(env: &mut Env<'_>) -> Verdict {
    let early = [
        ("COMPLETE_ONLY", RunControl { flags: RunFlags::COMPLETE_ONLY.bits(), ..control() }),
        ("a passed deadline", RunControl { deadline: 1, ..control() }),
    ];
    let guest = counting(env, INTERRUPTS)?;
    for (name, early) in early {
        for event in [Event::Interrupt(0x55), Event::Exception { vector: 6, error: None }] {
            restart(&guest, INTERRUPTS)?;
            let (word, _) = event.encode();
            let (exit, _) = guest.exit(&RunControl { event: word, ..early })?;
            holds!(matches!(exit, Exit::Completed | Exit::Deadline), "{name}: {exit:x?}");
            env.l0.ok(Op::GetRegs, &args::vcpu(0, 0).flags(Groups::EVENTS.bits()))?;
            let events: Events = env.l0.get(offset::EVENTS);
            same!(events.injected, word, "EVENTS.injected after {name}");
            let vector = (word & 0xff) as u8;
            guest.takes(vector).case(format_args!("{name}"))?;
            guest.done()?;
            guest.settle()?;
        }
    }
    Ok(())
}

/// HLT, then an interrupt with the next RUN: handler, then the instruction behind HLT.
fn wakes_from_hlt(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    guest.start(0, code::opens_and_halts(), &[(gpr::RAX, 3)])?;
    let (exit, raw) = guest.exit(&control())?;
    same!(exit, Exit::Hlt, "the exit");
    same!(raw.state & 1, 1, "IF");
    let (exit, _) = guest.exit(&with(Event::Interrupt(0x66)))?;
    guest.took(exit, 0x66)?;
    same!(guest.done()?, 3, "EAX");
    Ok(())
}

/// The reply is taken before the event: the handler returns behind the IN.
fn with_a_reply(env: &mut Env<'_>) -> Verdict {
    let guest = Guest::new(env)?;
    let general = registers::general(0, &[(gpr::RDX, 0x70)]);
    let general = Gprs { rflags: FLAGS | INTERRUPTS, ..general };
    guest.start_in(0, &code::ports()[4..], &general, &registers::long())?;
    guest.run()?;
    env.l0.put(offset::IO, &0x1234_u32);
    let (exit, _) = guest.exit(&with(Event::Interrupt(0x77)))?;
    guest.took(exit, 0x77)?;
    same!(guest.done()?, 0x1234, "EAX: what IN read");
    Ok(())
}

/// While one event is being delivered, no other can be taken but an NMI.
fn one_at_a_time(env: &mut Env<'_>) -> Verdict {
    let guest = counting(env, INTERRUPTS)?;
    let (word, _) = Event::Interrupt(0x31).encode();
    let only = RunControl { flags: RunFlags::COMPLETE_ONLY.bits(), event: word, ..control() };
    same!(guest.exit(&only)?.0, Exit::Completed, "the exit");
    guest.refuses_run(Status::BadState, &with(Event::Interrupt(0x32)))?;
    guest.refuses_run(Status::BadState, &with(Event::Exception { vector: 6, error: None }))?;
    guest.takes(0x31)?;
    same!(guest.done()?, 1, "EAX");
    Ok(())
}
