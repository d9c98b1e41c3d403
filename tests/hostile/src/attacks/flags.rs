//! Attacks by RFLAGS: every bit, by every instruction that loads them.
//! May: nothing. Context: any. Input: random.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        memory::{self, STACK_OFFSET},
        piece,
        trial::{Left, Mode, Trial, code, stack},
    },
};
use hostile::values;
use pv_abi::{
    event::{BP, GP, RFLAGS_ALLOWED, RFLAGS_FORCED, RFLAGS_RF},
    selectors::{USER_CS, USER_DS},
};
use suite::{
    random::Random,
    same,
    verdict::{Case, Verdict},
};

pub const GROUP: Group = Group {
    name: "flags",
    attacks: &[
        attack("eretu", "RET-1 RET-2 EVT-1", 15, eretu),
        attack("iretq_start", "RET-5 EVT-2", 15, iretq_start),
        attack("iretq", "EVT-1 EVT-2 INS-18", 20, iretq),
        attack("popf", "INS-20", 20, popf),
    ],
};

const NESTED_TASK: u64 = 1 << 14;

/// Every single bit first, then any.
fn flags(random: &mut Random, round: u64) -> u64 {
    match round {
        0..64 => 1 << round,
        64..128 => !(1 << (round - 64)),
        _ if random.once_in(2) => random.bits() & 0x003f_ffff,
        _ => values::number(random),
    }
}

fn either(round: u64) -> Mode {
    if round & 1 == 0 { Mode::User } else { Mode::Supervisor }
}

/// The flags that INT3 shows after `loaded` were asked for; the virtual interrupt flag is 0 in
/// supervisor mode.
fn shown(left: &Left, loaded: u64) -> Verdict {
    let interrupts = if left.mode == Mode::User { 0 } else { 0x200 };
    let expected = (loaded & RFLAGS_ALLOWED | RFLAGS_FORCED) & !RFLAGS_RF & !interrupts;
    same!(left.rflags & !RFLAGS_RF, expected, "RFLAGS for {loaded:#x}");
    Ok(())
}

fn eretu(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let trial = Trial::of(Mode::User, piece::int3());
    while let Some(round) = rounds.next() {
        let rflags = flags(&mut rounds.random, round);
        // By SYSRET, where R11 and RCX are as it wants them, and by IRET.
        let by_sysret = rounds.random.once_in(2);
        let left = trial
            .but(|t| t.rflags = rflags)
            .with(|r| {
                if by_sysret {
                    (r.rcx, r.r11) = (trial.rip, rflags & RFLAGS_ALLOWED | RFLAGS_FORCED);
                }
            })
            .run();
        left.is(BP, trial.rip + 1).case(format_args!("{rflags:#x}"))?;
        shown(&left, rflags)?;
    }
    Ok(())
}

/// The IRETQ by which every trial of supervisor mode starts.
fn iretq_start(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let trial = Trial::of(Mode::Supervisor, piece::int3());
    while let Some(round) = rounds.next() {
        let rflags = flags(&mut rounds.random, round);
        let left = trial.but(|t| t.rflags = rflags).run();
        left.is(BP, trial.rip + 1).case(format_args!("{rflags:#x}"))?;
        shown(&left, rflags)?;
    }
    Ok(())
}

/// IRETQ in either mode; with NT set it is a #GP.
fn iretq(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::iretq());
    while let Some(round) = rounds.next() {
        let mode = either(round);
        let rflags = flags(&mut rounds.random, round / 2);
        let before = if rounds.random.once_in(16) { NESTED_TASK } else { 0 };
        let target = code(mode) + 32;
        let frame = [target, USER_CS.into(), rflags, stack(), USER_DS.into()];
        for (index, value) in frame.into_iter().enumerate() {
            memory::set_data(STACK_OFFSET + 8 * index as u64, value);
        }
        let left = Trial::new(mode).but(|t| t.rflags |= before).run();
        if before != 0 {
            left.is(GP, code(mode))?;
        } else {
            left.is(BP, target + 1).case(format_args!("{rflags:#x}"))?;
            shown(&left, rflags)?;
        }
    }
    rounds.raised(GP, u64::from(rounds.count > 1000))
}

/// POPF in either mode: the interrupt flag and the privileged ones stay.
fn popf(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::popf());
    while let Some(round) = rounds.next() {
        let mode = either(round);
        let rflags = flags(&mut rounds.random, round / 2);
        memory::set_data(STACK_OFFSET, rflags);
        let left = Trial::new(mode).run();
        left.is(BP, code(mode) + 2).case(format_args!("{rflags:#x}"))?;
        shown(&left, rflags)?;
    }
    Ok(())
}
