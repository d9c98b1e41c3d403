//! Attacks by selectors and descriptors.
//! May: nothing. Context: any. Input: random.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        abi,
        counters::Reason,
        memory::{self, STACK_OFFSET},
        piece,
        trial::{Left, Mode, Trial, Way, code, stack},
    },
};
use core::sync::atomic::Ordering::Relaxed;
use hostile::values;
use pv_abi::{
    event::{BP, GP, NP, PF, RFLAGS_FORCED, SS, UD},
    ext::{Features, call},
    hypercall as nr,
    selectors::{USER_CS, USER_DS, USER32_CS},
};
use suite::{
    holds,
    random::Random,
    same, skip,
    verdict::{Case, Verdict},
};

pub const GROUP: Group = Group {
    name: "selectors",
    attacks: &[
        attack("eretu_cs", "RET-1 RET-4 SEL-1", 66, eretu_cs),
        attack("eretu_ss", "RET-1 RET-4 SEL-1", 66, eretu_ss),
        attack("iretq_cs", "EVT-1 SEL-1", 66, iretq_cs),
        attack("iretq_ss", "EVT-1 SEL-1", 66, iretq_ss),
        attack("loads", "SEL-2 SEL-4", 66, loads),
        attack("described", "SEL-2 INS-19", 33, described),
        attack("load_gs", "HC-9", 66, load_gs),
        attack("load_tls", "HC-12", 10, load_tls),
        attack("load_ldt", "XHC-9", 5, load_ldt),
    ],
};

/// What may come of returning to selectors.
fn taken_or_refused(left: &Left, selector: u16, good: &[u16]) -> Verdict {
    match left.way {
        Way::Event(BP) => holds!(good.contains(&(selector | 3)), "{selector:#x} was taken"),
        Way::Event(GP | NP | SS) => {
            holds!(!good.contains(&(selector | 3)), "{selector:#x} was refused");
            same!(left.error & !3, selector & !3, "the error code for {selector:#x}");
        }
        way => same!(way, Way::Event(GP), "how it was left, for {selector:#x}"),
    }
    Ok(())
}

/// Code segments of the guest's, all but those that it loads itself.
const CODE: [u16; 2] = [USER_CS, USER32_CS];
/// What a stack segment may be. Those that carry a number cannot be written.
const DATA: [u16; 1] = [USER_DS];

fn eretu_cs(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let trial = Trial::of(Mode::User, piece::int3());
    while let Some(round) = rounds.next() {
        let cs = round as u16;
        let left = trial.but(|t| t.selectors = u32::from(cs) | u32::from(USER_DS) << 16).run();
        taken_or_refused(&left, cs, &CODE)?;
    }
    // Less than the sweep is no sweep.
    rounds.entered(Reason::FailedEntry, rounds.count * 9 / 10)
}

fn eretu_ss(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    let trial = Trial::of(Mode::User, piece::int3());
    while let Some(round) = rounds.next() {
        let ss = round as u16;
        let left = trial.but(|t| t.selectors = u32::from(USER_CS) | u32::from(ss) << 16).run();
        taken_or_refused(&left, ss, &DATA)?;
    }
    rounds.entered(Reason::FailedEntry, rounds.count * 9 / 10)
}

/// Runs IRETQ of user mode to `cs` and `ss`.
fn iretq(cs: u16, ss: u16) -> Left {
    let frame = [code(Mode::User) + 32, cs.into(), RFLAGS_FORCED, stack(), ss.into()];
    for (index, value) in frame.into_iter().enumerate() {
        memory::set_data(STACK_OFFSET + 8 * index as u64, value);
    }
    Trial::new(Mode::User).run()
}

/// What IRETQ takes has to name privilege 3 itself.
fn taken_or_refused_as_is(left: &Left, selector: u16, good: &[u16]) -> Verdict {
    match left.way {
        Way::Event(BP) => holds!(good.contains(&selector), "{selector:#x} was taken"),
        Way::Event(GP | NP | SS) => holds!(!good.contains(&selector), "{selector:#x} was refused"),
        way => same!(way, Way::Event(GP), "how it was left, for {selector:#x}"),
    }
    Ok(())
}

fn iretq_cs(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::iretq());
    while let Some(round) = rounds.next() {
        taken_or_refused_as_is(&iretq(round as u16, USER_DS), round as u16, &CODE)?;
    }
    rounds.raised(GP, rounds.count * 9 / 10)
}

fn iretq_ss(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::iretq());
    while let Some(round) = rounds.next() {
        taken_or_refused_as_is(&iretq(USER_CS, round as u16), round as u16, &DATA)?;
    }
    rounds.raised(GP, rounds.count * 9 / 10)
}

/// DS, ES, FS and GS, in either mode.
fn loads(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::loads());
    while let Some(round) = rounds.next() {
        let selector = round as u16;
        let mode = if round >> 16 & 1 == round & 1 { Mode::User } else { Mode::Supervisor };
        let left = Trial::new(mode).with(|r| r.rax = selector.into()).run();
        match left.way {
            Way::Event(BP) => {}
            way => {
                same!(way, Way::Event(GP), "how it was left, for {selector:#x}");
                same!(left.error & !3, selector & !3, "the error code");
            }
        }
    }
    rounds.raised(GP, rounds.count * 9 / 10)?;
    rounds.raised(BP, 4)
}

/// LAR, LSL, VERR and VERW say nothing of what is not the guest's.
fn described(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::write_code(piece::described());
    while let Some(round) = rounds.next() {
        // Twice as many as rounds at first: all that can exist come early.
        let selector = (2 * round) as u16 | 1;
        let left = Trial::new(Mode::User)
            .with(|r| (r.rax, r.rcx, r.rdx) = (selector.into(), 0, u64::MAX))
            .run();
        same!(left.way, Way::Event(BP), "how it was left");
        let (limit, known) = (left.registers.rdx, left.registers.rdx != u64::MAX);
        if known && !matches!(selector & !7, 0x20 | 0x28 | 0x30 | 0x60 | 0x68 | 0x70) {
            holds!(matches!(selector & !7, 0x78 | 0x80), "LSL of {selector:#x} gives {limit:#x}");
            same!(limit, 0, "the vCPU's number");
        }
    }
    Ok(())
}

fn load_gs(rounds: &mut Rounds) -> Verdict {
    while let Some(round) = rounds.next() {
        let base = abi::call1(nr::LOAD_GS, u64::from(round as u16) | round << 48);
        same!(base, 0, "the base of {:#x}", round as u16);
    }
    rounds.entered(Reason::Hypercall, rounds.count)
}

/// Any descriptors in the three slots, then every use of their selectors.
fn load_tls(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let descriptors = [descriptor(random), descriptor(random), descriptor(random)];
        let [a, b, c] = descriptors;
        same!(abi::call(nr::LOAD_TLS, [a, b, c, 0]), 0, "LOAD_TLS");
        let selector = random.pick(&[0x63, 0x6b, 0x73]);
        used(random, selector).case(format_args!("round {round}, {descriptors:x?}"))?;
    }
    abi::call(nr::LOAD_TLS, [0; 4]);
    rounds.entered(Reason::Hypercall, rounds.count)
}

/// A descriptor of any kind, often of code or data.
fn descriptor(random: &mut Random) -> u64 {
    const PRESENT_SEGMENT: u64 = 9 << 44;
    let bits = random.bits();
    match random.below(4) {
        0 => values::number(random),
        1 => bits,
        2 => bits | PRESENT_SEGMENT,
        // A base that is 0, and all of memory.
        _ => 0x00cf_f000_0000_ffff | bits & 0x0f << 40 | bits & 3 << 45 | PRESENT_SEGMENT,
    }
}

/// Loads a selector of the guest's own, accesses memory through it, and returns to it.
fn used(random: &mut Random, selector: u16) -> Verdict {
    let left = match random.below(3) {
        0 => {
            let at = if random.once_in(2) { stack() } else { values::address(random) };
            Trial::of(Mode::User, piece::through())
                .with(|r| (r.rax, r.rcx) = (selector.into(), at))
                .run()
        }
        1 => {
            let trial = Trial::of(Mode::User, piece::int3());
            trial.but(|t| t.selectors = u32::from(USER_CS) | u32::from(selector) << 16).run()
        }
        _ => {
            let trial = Trial::of(Mode::User, piece::int3());
            trial.but(|t| t.selectors = u32::from(selector) | u32::from(USER_DS) << 16).run()
        }
    };
    let known = matches!(left.way, Way::Event(BP | GP | NP | SS | PF | UD));
    holds!(known, "{:?} of {selector:#x} at {:#x}", left.way, left.rip);
    Ok(())
}

/// Local tables of any size, from anywhere, of any descriptors.
fn load_ldt(rounds: &mut Rounds) -> Verdict {
    const PAGES: u64 = 4;
    if abi::call1(call::ENABLE, Features::DESCRIPTORS.bits().into()) != 0 {
        return skip!("DESCRIPTORS is not offered");
    }
    memory::reset_pages(|| 0);
    let table = memory::frame(0);
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        if round % 64 == 0 {
            (0..PAGES).for_each(|page| {
                memory::fill_frame(table + 4096 * page, |_| descriptor(random));
            });
        }
        for _ in 0..8 {
            memory::word(table + 8 * random.below(512 * PAGES)).store(descriptor(random), Relaxed);
        }
        let (at, entries) = match random.below(8) {
            0 => (values::address(random), values::number(random)),
            1 => (table, values::number(random)),
            2 => (memory::memory() - 8 * random.below(64), random.below(128)),
            3 => (table, 0),
            _ => (table + random.below(64), 1 + random.below(512 * PAGES - 8)),
        };
        abi::call(call::LOAD_LDT, [at, entries, 0, 0]);
        let selector = random.bits() as u16 & 0x3fff | 7;
        used(random, selector).case(format_args!("round {round}"))?;
    }
    abi::call(call::LOAD_LDT, [0; 4]);
    rounds.entered(Reason::Hypercall, rounds.count)
}
