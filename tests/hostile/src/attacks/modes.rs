//! Attacks by calling the hypervisor from where that is not allowed.
//! May: nothing. Context: any. Input: random.

use super::calls;
use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        memory, piece,
        registers::Registers,
        trial::{Mode, Trial, Way, code, stack},
    },
};
use hostile::values;
use pv_abi::{
    event::{GP, INT80, UD},
    selectors::{USER_DS, USER32_CS},
};
use suite::{holds, same, verdict::Verdict};

pub const GROUP: Group = Group {
    name: "modes",
    attacks: &[
        attack("syscall", "EVT-5 HC-1", 20, syscall),
        attack("int80", "SEL-3 EVT-1", 10, int80),
        attack("syscall_32", "EVT-6", 20, syscall_32),
        attack("sysenter", "EVT-6", 5, sysenter),
    ],
};

/// Registers that would be a hypercall, were it supervisor mode that made it.
fn arguments(rounds: &mut Rounds) -> Registers {
    let random = &mut rounds.random;
    let registers = Registers::drawn(random, values::number);
    Registers { rax: calls::number(random), rsp: stack(), ..registers }
}

fn syscall(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let trial = Trial::of(Mode::User, piece::syscall());
    while rounds.next().is_some() {
        let registers = arguments(rounds);
        let left = trial.with(|r| *r = registers).run();
        same!(left.way, Way::Syscall, "how it was left");
        same!(left.rip, trial.rip + 2, "RIP");
        let kept = Registers { rcx: registers.rcx, r11: registers.r11, ..left.registers };
        holds!(kept == registers, "registers: {kept:x?} of {registers:x?}");
    }
    let switches = rounds.counted().direct_switches();
    holds!(switches >= rounds.count, "only {switches} direct switches");
    Ok(())
}

fn int80(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::int80());
    while let Some(round) = rounds.next() {
        let mode = if round & 1 == 0 { Mode::User } else { Mode::Supervisor };
        let registers = arguments(rounds);
        let left = Trial::new(mode).with(|r| *r = registers).run();
        left.is(INT80, code(mode) + 2)?;
        same!(left.registers, registers, "registers");
    }
    Ok(())
}

/// 32-bit code has no way in.
fn syscall_32(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let trial = Trial::of(Mode::User, piece::syscall())
        .but(|t| t.selectors = u32::from(USER32_CS) | u32::from(USER_DS) << 16);
    while rounds.next().is_some() {
        let registers = arguments(rounds);
        let left = trial.with(|r| *r = registers).run();
        left.is(UD, trial.rip)?;
        same!(left.registers.rax as u32, registers.rax as u32, "EAX");
        same!(left.selectors as u16, USER32_CS, "CS");
    }
    rounds.raised(UD, rounds.count)
}

fn sysenter(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::sysenter());
    while let Some(round) = rounds.next() {
        let mode = if round & 1 == 0 { Mode::User } else { Mode::Supervisor };
        let registers = arguments(rounds);
        let left = Trial::new(mode).with(|r| *r = registers).run();
        let fitting = matches!(left.way, Way::Event(UD | GP));
        holds!(fitting, "{:?} at {:#x}", left.way, left.rip);
    }
    Ok(())
}
